// Which piece is looked at: by pointer, by touch or by the arrow keys.

// Show a piece: the one that is pointed at, or else the one that was chosen.
function show(at) {
  state.shown = at;
  drawToken();
  markStrip();
}

function choose(at, focus = false) {
  state.chosen = at;
  show(null);
  markChosen();
  const element = $("text").children[at];
  element.setAttribute("aria-description", summary(state.pieces[at]));
  if (focus) element.focus();
}

function markChosen() {
  [...$("text").children].forEach((element, at) => {
    const isChosen = at === state.chosen;
    if (isChosen !== (element.getAttribute("aria-selected") === "true")) element.setAttribute("aria-selected", String(isChosen));
    element.tabIndex = at === (state.chosen ?? 0) ? 0 : -1;
  });
}

function summary(piece) {
  if (piece.tokens[0].logprob === null) return "nothing is known of it";
  const known = `probability ${percent(Math.exp(logprobOf(piece)))}`;
  if (!piece.credit) return known;
  return `${piece.leader === null ? "undecided" : `${piece.leader}, ${percent(piece.credit[piece.leader])}`}; ${known}`;
}

function move(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const last = state.pieces.length - 1;
  const at = state.chosen ?? -1;
  const next = event.key === "Home" ? 0 : event.key === "End" ? last : event.key in steps ? at + steps[event.key] : null;
  if (next === null || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(last, next)), true);
}
