// Pieces, and what is known of them.

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
