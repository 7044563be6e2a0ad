// The strip of weights over the text.

function drawStrip() {
  const strip = $("strip");
  const [width, height] = [strip.clientWidth || 600, strip.clientHeight || 66];
  const pieces = state.pieces.filter(piece => piece.tokens[0].logprob !== null);
  strip.setAttribute("viewBox", `0 0 ${width} ${height}`);
  strip.style.display = pieces.length ? "" : "none";
  if (!pieces.length) return strip.replaceChildren();
  const names = Object.keys(pieces[0].tokens[0].experts ?? {});
  const rows = names.length ? names.map(name => pieces.map(piece => piece.tokens[0].experts[name]?.weight ?? 0))
    : [pieces.map(piece => Math.exp(logprobOf(piece)))];
  const x = at => width * at / pieces.length;
  const floor = pieces.map(() => 0);
  const content = [svg("defs", {}, ...[0, 1, 2, 3, 4, 5].map(hatching))];
  rows.forEach((row, voice) => {
    const area = areaPath(floor, row, x, height);
    row.forEach((share, at) => { floor[at] += share; });
    const name = names[voice];
    content.push(svg("path", { class: "area", d: area, fill: name ? colour(name) : PALETTE[4], "fill-opacity": 0.6 }));
    if (name) content.push(svg("path", { d: area, fill: `url(#hatch${pattern(name)})` }));
    if (name) content.push(...stripLetter(name, row, floor, x, height));
  });
  const first = pieces.findIndex(piece => !piece.isGiven);
  if (first > 0) content.push(svg("line", { class: "start", x1: x(first), x2: x(first), y1: 0, y2: height }));
  content.push(svg("line", { class: "mark", id: "mark", y1: 0, y2: height, visibility: "hidden" }));
  strip.replaceChildren(...content);
  const means = rows.map((row, i) => `${names[i] ?? "probability of the words"} ${percent(sum(row) / row.length)}`);
  strip.setAttribute("aria-label", `${names.length ? "Weights before each word" : "How likely each word was"}; on average ${means.join(", ")}`);
  markStrip();
}

function areaPath(floor, row, x, height) {
  const y = share => (height * (1 - Math.min(1, share))).toFixed(1);
  const there = row.map((share, at) => `${x(at).toFixed(1)},${y(floor[at] + share)} ${x(at + 1).toFixed(1)},${y(floor[at] + share)}`);
  const back = row.map((_, at) => `${x(at + 1).toFixed(1)},${y(floor[at])} ${x(at).toFixed(1)},${y(floor[at])}`).reverse();
  return `M${there.join(" ")} ${back.join(" ")}Z`;
}

function stripLetter(name, row, top, x, height) {
  const at = row.reduce((best, share, i) => share > row[best] ? i : best, 0);
  if (row[at] * height < 15) return [];
  const middle = height * (1 - top[at] + row[at] / 2);
  const left = Math.min(Math.max(x(at + 0.5), 8), x(row.length) - 8);
  return [svg("text", { x: left, y: middle + 4, "text-anchor": "middle" }, letter(name))];
}

function hatching(index) {
  const shapes = ["", "M0,6 L6,0", "M1.5,1.5 l.01,0", "M0,3 H6", "M0,0 L6,6 M0,6 L6,0", "M3,0 V6"];
  const size = index === 2 ? 5 : 6;
  const shape = index === 2 ? svg("circle", { cx: 2.5, cy: 2.5, r: 0.7 }) : svg("path", { d: shapes[index] });
  return svg("pattern", { id: `hatch${index}`, width: size, height: size, patternUnits: "userSpaceOnUse" }, shape);
}

function markStrip() {
  const mark = $("mark");
  if (!mark) return;
  const at = state.shown ?? state.chosen;
  const pieces = state.pieces.filter(piece => piece.tokens[0].logprob !== null);
  const place = at === null ? -1 : pieces.indexOf(state.pieces[at]);
  mark.setAttribute("visibility", place < 0 ? "hidden" : "visible");
  const x = ($("strip").clientWidth || 600) * (place + 0.5) / pieces.length;
  mark.setAttribute("x1", x);
  mark.setAttribute("x2", x);
}
