// What colours and lines stand for.

function drawLegend() {
  $("legend").replaceChildren(...(isComposed() ? voiceLegend() : LIKELY.map(([least, kind, name]) => {
    const sign = h("span", { className: `sign ${kind}`, "aria-hidden": "true" }, "word");
    sign.style.setProperty("--mixed", PALETTE[4]);
    sign.style.setProperty("--sure", { "": 0, p1: 0.15, p2: 0.45, p3: 1 }[kind]);
    return h("li", {}, sign, `foreseen with ${name}`);
  })));
}

function voiceLegend() {
  const heard = state.pieces.map(piece => piece.credit).filter(Boolean);
  const names = heard.length ? Object.keys(heard[heard.length - 1]) : state.info.experts;
  const items = names.map(name => {
    const sign = h("span", { className: `sign v${pattern(name)}`, "--own": colour(name), "--mixed": colour(name) }, letter(name));
    const share = heard.length ? ` ${percent(sum(heard.map(credit => credit[name] ?? 0)) / heard.length)}` : "";
    return h("li", { title: "share of the words shown" }, sign, name, h("span", { className: "quiet" }, share));
  });
  return [...items, h("li", { className: "quiet" }, "pale, no line: several alike")];
}
