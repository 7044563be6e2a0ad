// The text, piece by piece, and how a piece is painted.

const LIKELY = [[0.5, "", "at least 50%"], [0.1, "p1", "10 to 50%"], [0.01, "p2", "1 to 10%"], [0, "p3", "less than 1%"]];

function draw() {
  cancelAnimationFrame(state.frame);
  state.frame = null;
  const branch = state.branch;
  if (state.drawn !== branch) $("text").replaceChildren();
  state.drawn = branch;
  state.pieces = branch ? allPieces(branch) : [];
  const elements = $("text").children;
  let last = null;
  state.pieces.forEach((piece, at) => {
    piece.credit = creditOf(piece);
    piece.leader = leader(piece.credit);
    piece.changes = piece.leader !== null && piece.leader !== last;
    last = piece.leader ?? last;
    const key = `${piece.text}|${piece.tokens.length}|${piece.tokens[0].id}`;
    const old = elements[at];
    if (old?.dataset.key === key) return;
    const element = pieceElement(piece, at);
    element.dataset.key = key;
    if (old) old.replaceWith(element); else $("text").append(element);
  });
  while (elements.length > state.pieces.length) elements[elements.length - 1].remove();
  $("hint").hidden = state.pieces.length > 0;
  $("text").tabIndex = state.pieces.length ? -1 : 0;
  if (state.chosen !== null && state.chosen >= state.pieces.length) state.chosen = null;
  markChosen();
  drawLegend();
  drawStrip();
}

function pieceElement(piece, at) {
  const element = h("span", { className: "piece", role: "option", tabIndex: -1 }, ...lines(piece.text));
  element.dataset.at = at;
  element.setAttribute("aria-selected", "false");
  if (!piece.text.trim()) element.setAttribute("aria-label", piece.text ? piece.text.includes("\n") ? "new line" : "space" : "end of the text");
  element.classList.toggle("end", piece.text === "");
  element.classList.toggle("first", !piece.isGiven && at > 0 && state.pieces[at - 1].isGiven);
  if (piece.credit) paintByCredit(element, piece); else paintByProbability(element, logprobOf(piece));
  return element;
}

// A text with a sign before each end of a line, which is no part of the text.
const lines = text => text.split("\n").flatMap((line, at) => at ? [h("i"), `\n${line}`] : [line]);

function paintByCredit(element, piece) {
  element.style.setProperty("--mixed", mixed(piece.credit));
  element.style.setProperty("--sure", certainty(piece.credit).toFixed(3));
  if (piece.leader === null) return;
  element.style.setProperty("--own", colour(piece.leader));
  element.classList.add(`v${pattern(piece.leader)}`);
  if (piece.changes) element.dataset.letter = letter(piece.leader);
}

function paintByProbability(element, logprob) {
  if (logprob === null) return;
  const p = Math.exp(logprob);
  element.style.setProperty("--mixed", PALETTE[4]);
  element.style.setProperty("--sure", Math.min(1, Math.max(0, -logprob / 7) - 0.1).toFixed(3));
  const kind = LIKELY.find(([least]) => p >= least)[1];
  if (kind) element.classList.add(kind);
}
