// What people do with a text: begin it, go on, put another token, rewind, read it again.

async function begin() {
  if (state.writing || !$("ask").reportValidity() || !areSettingsValid()) return;
  const said = $("prompt").value;
  const isChat = $("kinds").querySelector("[value=chat]").checked;
  const content = isChat ? { kind: "chat", messages: conversation(said) } : { prompt: said };
  const before = state.branch;
  const branch = addBranch(null, short(visible(said.trim()) === "∅" ? "(no prompt)" : said.trim().replaceAll("\n", " ")), content);
  if (!await write(branch, { echo: true })) discard(branch, before);
  else if (isChat) $("prompt").value = "";
}

// What was refused leaves no branch behind.
function discard(branch, before) {
  state.branches.splice(state.branches.indexOf(branch), 1);
  go(before);
}

// How many tokens stand there for good: the bytes of a character of which a part is missing may be told anew.
function whole(branch) {
  const last = piecesOf(branch.tokens, branch.characters, false).at(-1);
  return last?.text.includes("\ufffd") ? last.first : branch.tokens.length;
}

function goOn() {
  if (!areSettingsValid()) return;
  const known = whole(state.branch);
  write(state.branch, { known, put: state.branch.tokens.slice(known).map(token => token.id) });
}

function force(at, { id, token }) {
  if (!areSettingsValid()) return;
  const branch = addBranch(state.branch, `at ${at + 1}: “${visible(token)}”`, grown(state.branch, at));
  write(branch, { known: at, put: [id] });
}

function rewindTo(end) {
  addBranch(state.branch, `rewound to ${end}`, grown(state.branch, end));
  say(`Rewound to ${end} ${end === 1 ? "token" : "tokens"}. “Write on” goes on from here.`);
  choose(state.pieces.length - 1, true);
}

function readAgain() {
  if (!areSettingsValid()) return;
  const name = modelName().slice(state.info.model.length).replace(/^:/, "") || "as served";
  const { tokens } = state.branch;
  const branch = addBranch(state.branch, `read: ${name}`, grown(state.branch, tokens.length));
  write(branch, { known: 0, put: tokens.map(token => token.id), most: 0, echo: true });
}
