// A conversation.

// A chat goes on from the branch that is shown.
function conversation(said) {
  const system = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  const before = state.branch?.kind === "chat" ? state.branch.messages.filter(one => one.role !== "system") : [];
  const answer = before.length ? [{ role: "assistant", content: state.branch.characters.join("") }] : [];
  return [...system, ...before, ...answer, { role: "user", content: said }];
}

function drawTurns() {
  const isChat = $("kinds").querySelector("[value=chat]").checked;
  $("conversation").hidden = $("fresh").hidden = !isChat;
  $("prompt-label").textContent = isChat ? "Your message" : "Prompt";
  const messages = isChat && state.branch?.kind === "chat" ? state.branch.messages.filter(one => one.role !== "system") : [];
  $("turns").replaceChildren(...messages.map(({ role, content }) => h("li", { dir: "auto" }, h("b", {}, role), content)));
}
