// Letting the server write on a branch.

// Let the server write on a branch, whose first `known` tokens it need not tell again, after those and the ones `put`;
// returns whether it told anything.
async function write(branch, { known = branch.tokens.length, put = [], most = $("tokens").valueAsNumber, echo = false } = {}) {
  const tokens = [...branch.tokens.slice(0, known).map(token => token.id), ...put];
  const text = branch.kind === "chat" ? { messages: branch.messages } : { prompt: branch.prompt };
  const body = { model: modelName(), ...text, tokens, known: echo ? 0 : known, echo, max_tokens: most, ...settings(), top: 5, stream: true };
  Object.assign(branch, grown(branch, echo ? 0 : known), { model: body.model, request: body, end: null, usage: null, began: undefined });
  state.writing = new AbortController();
  refresh();
  if (isFocusLost()) $("stop").focus({ preventScroll: true });
  say("Writing…");
  let told = 0;
  try {
    for await (const event of events(await ask("play", body, state.writing.signal))) {
      take(branch, event, echo && told === 0);
      told += 1;
    }
    finish(branch, branch.end === "stop" ? "The text has ended" : "Done");
  } catch (error) {
    if (error.name === "AbortError") finish(branch, "Stopped");
    else if (error.status === 401) lock(error.message);
    else { finish(branch, ""); say(error.message, true); }
  }
  look(known, put.length > 0 && most > 0);
  return told > 0;
}

function take(branch, event, isPrompt) {
  const [choice] = event.choices;
  if (isPrompt) {
    branch.promptTokens = choice.logprobs.tokens;
    branch.promptCharacters = Array.from(choice.text);
    branch.offset = branch.promptCharacters.length;
  } else {
    const offset = branch.request.echo ? branch.offset : 0;
    branch.characters.push(...Array.from(choice.text));
    branch.tokens.push(...choice.logprobs.tokens.map(token => ({ ...token, start: token.start - offset })));
  }
  branch.end = choice.finish_reason ?? branch.end;
  branch.usage = event.usage ?? branch.usage;
  branch.began ??= branch.tokens.length ? { at: performance.now(), with: branch.tokens.length } : undefined;
  state.frame ??= requestAnimationFrame(() => { draw(); drawSpeed(); });
}

const isFocusLost = () => document.activeElement === document.body || document.activeElement.disabled;

// Turn to the first token that is new, unless people look at another by now; on a phone only to one that was put there.
function look(known, isPut) {
  const isLost = isFocusLost();
  if (state.chosen === null && (isPut || matchMedia("(min-width: 60rem)").matches)) {
    const at = state.pieces.findIndex(piece => !piece.isGiven && piece.first + piece.tokens.length > known);
    if (at >= 0) return choose(at, isLost);
  }
  if (isLost) ($("text").children[state.chosen] ?? $("prompt")).focus({ preventScroll: true });
}

function finish(branch, how) {
  state.writing = null;
  refresh();
  const written = branch.tokens.length;
  say([`${how}: ${written} ${written === 1 ? "token" : "tokens"}`, speed(branch.usage)].filter(Boolean).join(", ") + ".");
}

// While a text is being written, what this page sees of it; then what the server says.
function drawSpeed() {
  const { usage, began, tokens } = state.branch ?? {};
  const seen = state.writing && began && (tokens.length - began.with) / (performance.now() - began.at) * 1000;
  $("speed").textContent = seen ? speed({ tokens_per_second: seen }) : speed(usage);
}

const speed = usage => usage?.tokens_per_second ? `${usage.tokens_per_second.toFixed(1)} tokens/s` : "";
