"use strict";
// What both pages share: the key, the rows of utterances, and showing texts. Everything that comes
// from the media or the server is inserted as text, never as markup. texts.js defines TEXTS.
const part = (id) => document.getElementById(id);

function tell(id, words) { part(id).textContent = words; }

// A text of texts.json with its {places} filled.
function filled(text, values) { return text.replace(/\{(\w+)\}/g, (_, name) => values[name]); }

function clock(ms) {
  const tenths = Math.floor(ms / 100);
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

function percent(share) { return `${Math.round(100 * share)} %`; }

async function problemOf(response) {
  try { return (await response.json()).detail; } catch { return `${response.status} ${response.statusText}`; }
}

// ------------------------------------------------------------------------------------ the key

part("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("key-told", "");
  const response = await fetch("/v1/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ key: part("key").value }),
  }).catch(() => null);
  if (response === null) { tell("key-told", TEXTS.shared.no_answer); return; }
  if (!response.ok) { tell("key-told", await problemOf(response)); return; }
  part("key").value = "";
  part("key-form").hidden = true;
  document.dispatchEvent(new Event("key-entered"));
});

async function checkKey() {
  const response = await fetch("/v1/model").catch(() => null);
  part("key-form").hidden = response === null || response.status !== 401;
}

// ------------------------------------------------------------------------------- the utterances

function addUtterance(each) {
  const row = part("utterances").tBodies[0].insertRow();
  row.insertCell().textContent = clock(each.start_ms);
  const words = each.speaker ? `${each.speaker}: ${each.text}` : each.text;
  row.insertCell().textContent = words || TEXTS.shared.no_words;
  row.insertCell().textContent = predictionOf(each);
  part("utterances").hidden = false;
}

function predictionOf(each) {
  return each.error ?? filled(TEXTS.shared.prediction, {
    emotion: each.emotion.label,
    percent: percent(each.emotion.confidence),
    sentiment: each.sentiment.label,
  });
}
