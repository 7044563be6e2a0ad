// Voices: who they are, and how they look.

const PALETTE = document.documentElement.dataset.palette.split(" ");  // as `treering explain` has them
const ITSELF = "the text itself";
const UNDECIDED = 0.15;  // below this certainty a word has no expert's sign

const isComposed = () => state.info.experts.length > 0;
const voices = () => [...state.info.experts, ITSELF];
const letter = voice => voice === ITSELF ? "=" : String.fromCharCode(65 + state.info.experts.indexOf(voice) % 26);
const pattern = voice => voices().indexOf(voice) % 6;

function colour(voice) {
  const all = voices();
  const at = all.indexOf(voice);
  return all.length <= PALETTE.length ? PALETTE[at] : `hsl(${360 * at / all.length} 70% ${at % 2 ? 38 : 48}%)`;
}

const voiceSign = name => h("span",
  { className: `sign v${pattern(name)}`, "--own": colour(name), "--mixed": colour(name), "aria-hidden": "true" }, letter(name));

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
