// What leads to what, and the beginning.

const pieceAt = event => event.target.closest?.(".piece");
$("ask").addEventListener("submit", event => { event.preventDefault(); begin(); });
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) begin(); });
document.addEventListener("keydown", event => { if (event.key === "Escape") state.writing?.abort(); });
$("stop").addEventListener("click", () => state.writing?.abort());
$("on").addEventListener("click", goOn);
$("again").addEventListener("click", readAgain);
$("fresh").addEventListener("click", () => { go(null); $("prompt").focus(); });
$("kinds").addEventListener("change", drawTurns);
$("rule").addEventListener("change", describeRule);
$("experts").addEventListener("change", keepOne);
$("text").addEventListener("keydown", move);
$("text").addEventListener("click", event => { const piece = pieceAt(event); if (piece) choose(Number(piece.dataset.at), true); });
$("text").addEventListener("focusin", event => { const piece = pieceAt(event); if (piece && Number(piece.dataset.at) !== state.chosen) choose(Number(piece.dataset.at)); });
$("text").addEventListener("pointerover", event => { const piece = pieceAt(event); if (piece && event.pointerType === "mouse") show(Number(piece.dataset.at)); });
$("text").addEventListener("pointerleave", () => { if (state.chosen !== null) show(null); });
$("strip").addEventListener("click", event => {
  const pieces = state.pieces.filter(piece => piece.tokens[0].logprob !== null);
  const box = $("strip").getBoundingClientRect();
  const piece = pieces[Math.min(pieces.length - 1, Math.floor(pieces.length * (event.clientX - box.left) / box.width))];
  if (piece) choose(state.pieces.indexOf(piece), true);
});
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));
$("door").addEventListener("submit", event => { event.preventDefault(); state.key = $("key").value.trim(); open(); });
new ResizeObserver(() => { if (state.info) drawStrip(); }).observe($("text"));
open();
