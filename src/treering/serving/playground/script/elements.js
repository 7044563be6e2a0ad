// How elements are made, and how numbers and texts are written.

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
