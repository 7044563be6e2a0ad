// The page as a whole: closed until the server has told of its model, then furnished, and drawn anew when things change.

async function open() {
  try {
    state.info = await (await ask("play")).json();
    say("");
    furnish();
  } catch (error) {
    if (error.status === 401) lock(error.message); else say(error.message, true);
  }
}

function furnish() {
  const { model, rule, experts, shared, rules, chat, context } = state.info;
  document.title = `${model}: a page to play with`;
  $("name").textContent = model;
  const trunk = shared ? ` on one trunk of ${shared} ${shared === 1 ? "block" : "blocks"},` : "";
  $("about").textContent = `${isComposed() ? `${experts.length} experts${trunk} joined by ${rule}` : "one model"} · `
    + `context ${context.toLocaleString("en")} tokens`;
  $("kinds").hidden = !chat;
  $("tokens").max = context;
  $("tokens").value = Math.min(60, Math.floor(context / 2));
  $("experts").hidden = $("rules").hidden = $("reading").hidden = !isComposed();
  $("experts").replaceChildren(h("legend", {}, "Who takes part"), ...experts.map(name =>
    h("label", {}, h("input", { type: "checkbox", value: name, checked: true }), voiceSign(name), name)));
  const offered = ["", ...rules.flatMap(name => name === "evidence" ? Object.keys(RULES).filter(one => one.startsWith(name)) : [name]), "another"];
  $("rule").replaceChildren(...offered.map(name =>
    h("option", { value: name }, name === "" ? `as served: ${rule}` : name === "another" ? "another…" : name)));
  $("settings").open = matchMedia("(min-width: 60rem)").matches;
  describeRule();
  $("door").hidden = true;
  $("room").hidden = false;
  refresh();
}

function lock(message) {
  state.writing = null;
  $("room").hidden = true;
  $("door").hidden = false;
  say(state.key ? message : "");
  $("key").focus();
}

function refresh() {
  draw();
  drawToken();
  drawBranches();
  drawTurns();
  drawPrograms();
  drawSpeed();
  $("plain").textContent = state.writing ? "" : state.branch?.characters.join("") ?? "";
  const isWriting = state.writing !== null;
  for (const id of ["on", "again"]) $(id).disabled = isWriting || !state.branch?.tokens.length;
  $("write").disabled = isWriting;
  $("stop").disabled = !isWriting;
}
