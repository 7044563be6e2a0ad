
// The page to play with. What a model wrote goes into the page as text nodes only, never as markup.
//
// A *branch* is one text: a prompt, and the tokens written or put after it. A *piece* is what is shown as one: a token, or
// several that are the bytes of one character. A *voice* is who speaks in a composition: an expert, or the text itself.

const PALETTE = ["#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9"];  // as in `treering explain`
const ITSELF = "the text itself";
const UNDECIDED = 0.15;  // below this certainty a word has no expert's sign
const LIKELY = [[0.5, "", "at least 50%"], [0.1, "p1", "10 to 50%"], [0.01, "p2", "1 to 10%"], [0, "p3", "less than 1%"]];
const RULES = {
  "": "The rule that the model is served with.",
  mean: "The paper’s: the mean of the experts’ logits. Weights are equal ones.",
  weighted: "A mixture by the experts’ own weights, the same for every text.",
  probability: "The mean of the experts’ probabilities. Weights are equal ones.",
  evidence: "A mixture by how much the text so far speaks for each expert.",
  "evidence:switch=0.01": "Evidence that lets another expert take over within a text.",
  "evidence:switch=0.01,together=0.01": "Evidence, mixed with a product of the experts that know the same. Weights are the experts’ shares in both.",
  "evidence:switch=0.01,cache=0.1": "Evidence, and what the text repeats of itself as one more voice.",
  top_k: "The most credible expert alone; while the model writes, the others may rest.",
  gate: "Weights by a gate that was fitted.",
  adapter: "A fitted map of hidden states. It has no weights: equal ones are shown.",
};

const state = {
  info: null, key: "", branches: [], branch: null, pieces: [], chosen: null, shown: null, writing: null, drawn: null, frame: null,
};
const $ = id => document.getElementById(id);

// ---- Small helpers

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = share => share === 0 ? "0%" : share < 0.0005 ? "<0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const probability = logprob => logprob === null ? "–" : percent(Math.exp(logprob));
const visible = text => (text.trim() ? text : text.replaceAll(" ", "␣")).replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const short = (text, most = 36) => text.length > most ? `${text.slice(0, most)}…` : text;
const sum = numbers => numbers.reduce((total, one) => total + one, 0);

function say(message, isBad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", isBad);
}

// ---- Voices: who they are, and how they look

const isComposed = () => state.info.experts.length > 0;
const voices = () => [...state.info.experts, ITSELF];
const letter = voice => voice === ITSELF ? "=" : String.fromCharCode(65 + state.info.experts.indexOf(voice) % 26);
const pattern = voice => voices().indexOf(voice) % 6;

function colour(voice) {
  const all = voices();
  const at = all.indexOf(voice);
  return all.length <= PALETTE.length ? PALETTE[at] : `hsl(${360 * at / all.length} 70% ${at % 2 ? 38 : 48}%)`;
}

const channels = hex => {
  if (hex.startsWith("#")) return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  const [hue, light] = [parseFloat(hex.slice(4)), parseFloat(hex.split(" ")[2]) / 100];
  const spread = 0.7 * Math.min(light, 1 - light);
  return [0, 8, 4].map(n => (n + hue / 30) % 12).map(k => 255 * (light - spread * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
};

function mixed(credit) {
  const rgb = [0, 0, 0];
  for (const [voice, share] of Object.entries(credit)) channels(colour(voice)).forEach((c, i) => { rgb[i] += share * c; });
  return `rgb(${rgb.map(Math.round).join(" ")})`;
}

// 0 where all have the same credit, 1 where one has all.
function certainty(credit) {
  const shares = Object.values(credit);
  return shares.length === 1 ? 1 : Math.max(0, (Math.max(...shares) - 1 / shares.length) / (1 - 1 / shares.length));
}

// ---- Pieces

// A branch's tokens as pieces. A token's `start` counts characters (code points), of which `characters` is a list.
function piecesOf(tokens, characters, isGiven) {
  const pieces = [];
  let first = 0;
  tokens.forEach((token, at) => {
    const end = at + 1 < tokens.length ? tokens[at + 1].start : characters.length;
    if (end === token.start && at + 1 < tokens.length) return;
    pieces.push({ first, tokens: tokens.slice(first, at + 1), text: characters.slice(token.start, end).join(""), isGiven });
    first = at + 1;
  });
  return pieces;
}

function allPieces(branch) {
  const own = piecesOf(branch.tokens, branch.characters, false);
  return branch.kind === "chat" ? own : [...piecesOf(branch.promptTokens, branch.promptCharacters, true), ...own];
}

// As `treering explain` has it: weight before the piece times the probability of all its tokens, normalised.
function creditOf(piece) {
  const [token] = piece.tokens;
  if (!token.experts) return null;
  if (piece.tokens.length === 1) return Object.fromEntries(Object.entries(token.experts).map(([name, of]) => [name, of.credit]));
  const logs = Object.keys(token.experts).map(name =>
    [name, Math.log(token.experts[name].weight) + sum(piece.tokens.map(one => one.experts[name].logprob ?? -Infinity))]);
  const most = Math.max(...logs.map(([, log]) => log));
  const total = sum(logs.map(([, log]) => Math.exp(log - most)));
  return Object.fromEntries(logs.map(([name, log]) => [name, Math.exp(log - most) / total]));
}

const logprobOf = piece => piece.tokens[0].logprob === null ? null : sum(piece.tokens.map(token => token.logprob));

function leader(credit) {
  if (!credit || certainty(credit) < UNDECIDED) return null;
  return Object.keys(credit).reduce((best, name) => credit[name] > credit[best] ? name : best);
}

// ---- The text

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

// ---- The strip of weights

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

// ---- One token

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

function drawToken() {
  const at = state.shown ?? state.chosen;
  const piece = at === null ? null : state.pieces[at];
  if (!piece) {
    $("token-title").textContent = "No token yet";
    $("token-about").textContent = "Of the token that you choose, here is what each expert thought before it came.";
    return $("token").replaceChildren();
  }
  $("token-title").replaceChildren(h("span", { className: "glyphs", dir: "auto" }, visible(piece.text)));
  const logprob = logprobOf(piece);
  const known = logprob === null ? "the first of all: nothing was said of it"
    : `foreseen with ${percent(Math.exp(logprob))}, ${(-logprob / Math.LN2).toFixed(1)} bits`;
  const several = piece.tokens.length > 1 ? `; ${piece.tokens.length} tokens make this piece, each below` : "";
  $("token-about").textContent = `${piece.isGiven ? "Prompt" : "Answer"}, piece ${at + 1} of ${state.pieces.length}: ${known}${several}.`;
  $("token").replaceChildren(...piece.tokens.flatMap((token, i) => tokenDetails(piece, token, piece.first + i)), actions(piece));
}

function tokenDetails(piece, token, position) {
  if (token.logprob === null) return [];
  const heading = piece.tokens.length > 1 ? [h("h3", {}, `Token ${visible(token.token)}`)] : [];
  const table = token.experts ? [tokenTable(token)] : [];
  const product = token.product === undefined ? [] : [h("p", { className: "quiet" },
    `The experts’ product had ${percent(token.product)} of the say here; the weights count what each has in it.`)];
  const lists = [["together", null, token], ...Object.entries(token.experts ?? {}).map(([name, of]) => [name, name, of])];
  const tops = h("div", { className: "tops" }, ...lists.map(([name, voice, of]) => topList(piece, token, position, name, voice, of)));
  return [...heading, ...table, ...product, tops];
}

function tokenTable(token) {
  const head = h("tr", {}, ...["", "weight", "probability", "credit"].map(name => h("th", { scope: "col" }, name)));
  const rows = Object.entries(token.experts).map(([name, of]) => h("tr", {},
    h("th", { scope: "row" }, voiceSign(name), ` ${name}`), ...[percent(of.weight), probability(of.logprob), percent(of.credit)].map(cell)));
  const joined = h("tr", {}, h("th", { scope: "row" }, "together"), ...["", probability(token.logprob), ""].map(cell));
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows, joined));
}

const cell = text => h("td", {}, text);
const voiceSign = name => h("span",
  { className: `sign v${pattern(name)}`, "--own": colour(name), "--mixed": colour(name), "aria-hidden": "true" }, letter(name));

function topList(piece, token, position, name, voice, of) {
  const heading = h("h3", {}, ...(voice ? [voiceSign(voice), ` ${name}`] : [isComposed() ? "together" : "likeliest"]));
  if (!of.top) return h("div", {}, heading, h("p", { className: "quiet" }, "rests: the rule did not need it here"));
  const items = of.top.map(one => {
    const button = h("button", {
      type: "button", disabled: piece.isGiven || state.writing !== null, "--share": `${100 * Math.exp(one.logprob)}%`,
      "aria-label": `${piece.isGiven ? "" : "Put "}“${visible(one.token)}”${piece.isGiven ? "" : " here and go on"}, ${probability(one.logprob)}`,
      title: piece.isGiven ? "" : "put it here and go on",
    }, h("span", { className: "name", dir: "auto" }, visible(one.token)), h("span", {}, probability(one.logprob)));
    if (voice) button.style.setProperty("--own", colour(voice));
    if (one.id === token.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => force(position, one));
    return h("li", {}, button);
  });
  return h("div", {}, heading, h("ol", {}, ...items));
}

function actions(piece) {
  if (piece.isGiven) return h("p", { className: "quiet" }, "This is the prompt; other words can be put into the answer.");
  const rewind = h("button", { type: "button", id: "rewind", disabled: state.writing !== null }, "Rewind to here");
  rewind.addEventListener("click", () => rewindTo(piece.first + piece.tokens.length));
  return h("div", { className: "row" }, rewind, h("span", { className: "quiet" }, "or put another token here: press it."));
}

// ---- Branches

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

// While a text is being written, what this page sees of it; then what the server says.
function drawSpeed() {
  const { usage, began, tokens } = state.branch ?? {};
  const seen = state.writing && began && (tokens.length - began.with) / (performance.now() - began.at) * 1000;
  $("speed").textContent = seen ? speed({ tokens_per_second: seen }) : speed(usage);
}

const speed = usage => usage?.tokens_per_second ? `${usage.tokens_per_second.toFixed(1)} tokens/s` : "";

// ---- Asking the server

async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw Object.assign(new Error(told?.error?.message ?? `The server answered ${response.status}.`), { status: response.status });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function modelName() {
  const without = [...$("experts").querySelectorAll("input:not(:checked)")].map(box => `-without-${box.value}`).join("");
  const rule = $("rule").value === "another" ? $("rule-text").value.trim() : $("rule").value;
  return state.info.model + without + (isComposed() && rule ? `:${rule}` : "");
}

function settings() {
  const chosen = { temperature: $("temperature").valueAsNumber, top_p: $("top-p").valueAsNumber };
  if ($("seed").value) chosen.seed = $("seed").valueAsNumber;
  return chosen;
}

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

// ---- What people do

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

function areSettingsValid() {
  const wrong = [...$("settings").querySelectorAll("input")].find(input => !input.checkValidity());
  if (wrong) $("settings").open = true;
  return wrong?.reportValidity() ?? true;
}

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

function move(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const last = state.pieces.length - 1;
  const at = state.chosen ?? -1;
  const next = event.key === "Home" ? 0 : event.key === "End" ? last : event.key in steps ? at + steps[event.key] : null;
  if (next === null || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(last, next)), true);
}

// ---- The same by program

function drawPrograms() {
  const request = state.branch?.request;
  if (!request) {
    $("curl").textContent = $("python").textContent = "Write something first.";
    return;
  }
  const { model, max_tokens, temperature, top_p, seed } = request;
  const room = state.info.context - 1 - state.branch.promptTokens.length - request.tokens.length;
  const sampling = { max_tokens: Math.min(max_tokens, room), temperature, top_p, ...(seed === undefined ? {} : { seed }) };
  const asked = { model, ...programmed(state.branch, request), ...sampling };
  const isChat = "messages" in asked;
  const url = `${location.origin}/v1`;
  const key = state.key ? ' \\\n  -H "Authorization: Bearer $TREERING_API_KEY"' : "";
  $("curl").textContent = `curl ${url}${isChat ? "/chat" : ""}/completions -H 'Content-Type: application/json'${key} \\\n`
    + `  -d '${JSON.stringify(asked).replaceAll("'", "'\\''")}'`;
  const named = Object.entries(asked).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  $("python").textContent = `${state.key ? "import os\n\n" : ""}from openai import OpenAI\n\n`
    + `client = OpenAI(base_url="${url}", api_key=${state.key ? 'os.environ["TREERING_API_KEY"]' : '"none"'})\n`
    + `told = client.${isChat ? "chat." : ""}completions.create(\n${named})\nprint(told.choices[0].${isChat ? "message.content" : "text"})`;
}

// With tokens that were put or written before, the text is told as token IDs: only so is it exactly the same.
function programmed(branch, request) {
  if (request.tokens.length) {
    const before = [state.info.separator, ...branch.promptTokens.map(token => token.id)];
    return { prompt: [...before, ...request.tokens] };
  }
  return branch.kind === "chat" ? { messages: branch.messages } : { prompt: branch.prompt };
}

async function copy(button) {
  const source = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
  } catch {  // no clipboard without TLS, except on this machine
    getSelection().selectAllChildren(source);
    say("Selected: copy it with Ctrl+C.");
  }
}

// ---- Beginning

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

function describeRule() {
  const name = $("rule").value;
  $("rule-text").hidden = name !== "another";
  $("rule-text").required = name === "another";
  $("rule-about").textContent = RULES[name] ?? "Any rule with its parameters, as after --rule.";
}

// The last expert cannot be switched off.
function keepOne() {
  const boxes = [...$("experts").querySelectorAll("input")];
  const on = boxes.filter(box => box.checked);
  for (const box of boxes) box.disabled = on.length === 1 && box.checked;
}

function lock(message) {
  state.writing = null;
  $("room").hidden = true;
  $("door").hidden = false;
  say(state.key ? message : "");
  $("key").focus();
}

async function open() {
  try {
    state.info = await (await ask("play")).json();
    say("");
    furnish();
  } catch (error) {
    if (error.status === 401) lock(error.message); else say(error.message, true);
  }
}

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
