// How it is written: experts, rule, temperature and the like.

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

function areSettingsValid() {
  const wrong = [...$("settings").querySelectorAll("input")].find(input => !input.checkValidity());
  if (wrong) $("settings").open = true;
  return wrong?.reportValidity() ?? true;
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
