"use strict";
// What both pages share: the key, the rows of utterances, and how things are told. Everything that
// comes from the media or the server is put in as text, never as markup.
const part = (id) => document.getElementById(id);

function tell(id, words) { part(id).textContent = words; }

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
  if (response === null) { tell("key-told", "The service does not answer."); return; }
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
  row.insertCell().textContent = words || "(no words are known)";
  row.insertCell().textContent = feltIn(each);
  part("utterances").hidden = false;
}

function feltIn(each) {
  return each.error ??
    `${each.emotion.label} ${percent(each.emotion.confidence)}, ${each.sentiment.label}`;
}
