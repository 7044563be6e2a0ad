// The same by program.

function drawPrograms() {
  const request = state.branch?.request;
  if (!request) {
    $("curl").textContent = $("python").textContent = "Write something first.";
    return;
  }
  const { model, max_tokens, temperature, top_p, seed } = request;
  const room = state.info.context - 1 - state.branch.promptTokens.length - request.tokens.length;
  const sampling = { max_tokens: Math.min(max_tokens, room), temperature, top_p, ...(seed === undefined ? {} : { seed }) };
  const asked = { model, ...programmed(state.branch, request), ...sampling };
  const isChat = "messages" in asked;
  const url = `${location.origin}/v1`;
  const key = state.key ? ' \\\n  -H "Authorization: Bearer $TREERING_API_KEY"' : "";
  $("curl").textContent = `curl ${url}${isChat ? "/chat" : ""}/completions -H 'Content-Type: application/json'${key} \\\n`
    + `  -d '${JSON.stringify(asked).replaceAll("'", "'\\''")}'`;
  const named = Object.entries(asked).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  $("python").textContent = `${state.key ? "import os\n\n" : ""}from openai import OpenAI\n\n`
    + `client = OpenAI(base_url="${url}", api_key=${state.key ? 'os.environ["TREERING_API_KEY"]' : '"none"'})\n`
    + `told = client.${isChat ? "chat." : ""}completions.create(\n${named})\nprint(told.choices[0].${isChat ? "message.content" : "text"})`;
}

// With tokens that were put or written before, the text is told as token IDs: only so is it exactly the same.
function programmed(branch, request) {
  if (request.tokens.length) {
    const before = [state.info.separator, ...branch.promptTokens.map(token => token.id)];
    return { prompt: [...before, ...request.tokens] };
  }
  return branch.kind === "chat" ? { messages: branch.messages } : { prompt: branch.prompt };
}

async function copy(button) {
  const source = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
  } catch {  // no clipboard without TLS, except on this machine
    getSelection().selectAllChildren(source);
    say("Selected: copy it with Ctrl+C.");
  }
}
