// Branches: how one grows from another, and which is shown.

function addBranch(parent, label, content) {
  const branch = {
    parent, label, depth: parent ? parent.depth + 1 : 0, kind: "text", prompt: "", messages: null, model: "", end: null,
    promptTokens: [], promptCharacters: [], tokens: [], characters: [], request: null, usage: null, ...content,
  };
  // A branch stands below its parent and what grew from that before.
  let place = state.branches.length;
  if (parent) {
    place = state.branches.indexOf(parent) + 1;
    while (place < state.branches.length && state.branches[place].depth > parent.depth) place += 1;
  }
  state.branches.splice(place, 0, branch);
  go(branch);
  return branch;
}

// The same text up to its token `at`, as something to go on from.
function grown(branch, at) {
  const end = at < branch.tokens.length ? branch.tokens[at].start : branch.characters.length;
  const { kind, prompt, messages, model, request, promptTokens, promptCharacters } = branch;
  return {
    kind, prompt, messages, model, request, promptTokens, promptCharacters,
    tokens: branch.tokens.slice(0, at), characters: branch.characters.slice(0, end),
  };
}

function go(branch) {
  state.branch = branch;
  state.chosen = state.shown = null;
  refresh();
}

function drawBranches() {
  $("no-branches").hidden = state.branches.length > 1;
  $("branches").replaceChildren(...(state.branches.length > 1 ? state.branches : []).map(branch => {
    const button = h("button", { type: "button", disabled: state.writing !== null },
      h("span", { className: "name" }, branch.label), h("span", { className: "quiet" }, `${branch.tokens.length} tokens`));
    if (branch === state.branch) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      go(branch);
      say(`Back at “${branch.label}”.`);
      $("branches").querySelector("[aria-current]").focus();
    });
    return h("li", { "--depth": Math.min(branch.depth, 6) }, button);
  }));
}
