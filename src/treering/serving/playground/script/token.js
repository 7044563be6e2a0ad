// All that is known of the piece that is looked at.

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
