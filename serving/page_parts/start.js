"use strict";
const mostBytes = Number(document.body.dataset.mostBytes);
let job = null;      // the address of the job on the page
let events = null;
let sending = null;

document.addEventListener("key-entered", () => part("media").focus());

// ------------------------------------------------------------------------------------ sending

const drop = part("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length > 0) { part("media").files = event.dataTransfer.files; }
});

part("send-form").addEventListener("submit", (event) => {
  event.preventDefault();
  tell("send-told", "");
  send(part("media").files[0], part("subtitles").files[0]);
});

part("sample").addEventListener("click", async () => {
  tell("send-told", "");
  const response = await fetch("/page/sample.mp4").catch(() => null);
  if (response === null || !response.ok) { tell("send-told", TEXTS.shared.no_answer); return; }
  const content = await response.blob();
  if (part("send-form").hidden) { return; }  // something was sent meanwhile
  send(new File([content], "sample.mp4", { type: "video/mp4" }));
});

function send(file, subtitles) {
  if (file.size > mostBytes) {
    tell("send-told", filled(TEXTS.start.too_large, { name: file.name, bytes: file.size, most: mostBytes }));
    return;
  }
  const form = new FormData();
  if (subtitles) { form.append("subtitles", subtitles, subtitles.name); }
  // A type that is no media's would be refused, and the file's own bytes tell anyway.
  const kind = /^(video|audio)\//.test(file.type) ? file.type : "application/octet-stream";
  form.append("media", new Blob([file], { type: kind }), file.name);
  showJob(file.name);
  tell("state", TEXTS.start.sending);
  sending = new XMLHttpRequest();
  sending.responseType = "json";
  sending.upload.addEventListener("progress", (sent) => showProgress(sent.loaded, sent.total));
  sending.addEventListener("load", () => {
    const { status, response } = sending;
    sending = null;
    if (status === 202) { follow(`/v1/jobs/${response.id}`); return; }
    backToForm(response?.detail ?? filled(TEXTS.start.refused, { status }));
    if (status === 401) { part("key-form").hidden = false; part("key").focus(); }
  });
  sending.addEventListener("error", () => {
    sending = null;
    backToForm(TEXTS.start.sending_failed);
  });
  sending.open("POST", "/v1/jobs");
  sending.send(form);
}

function backToForm(words) {
  part("job").hidden = true;
  part("send-form").hidden = false;
  tell("send-told", words);
  part("media").focus();
}

// ------------------------------------------------------------------------------------ the job

function showJob(name) {
  part("send-form").hidden = true;
  part("job").hidden = false;
  part("job-name").textContent = name;
  part("job-name").focus();
  part("links").hidden = true;
  part("again").hidden = true;
  part("erase").hidden = false;
  part("erase").disabled = false;
  part("erase").textContent = TEXTS.start.cancel;
  part("utterances").hidden = true;
  part("utterances").tBodies[0].replaceChildren();
  tell("job-told", "");
  showProgress(null);
}

function showProgress(done, total) {
  const bar = part("progress");
  bar.hidden = false;
  if (done === null || !total) { bar.removeAttribute("value"); return; }
  bar.max = total;
  bar.value = done;
}

function follow(address) {
  job = address;
  history.replaceState(null, "", `#${address.split("/").pop()}`);
  let number = 0;
  events = new EventSource(`${address}/events`);
  events.addEventListener("utterance", (event) => {
    number = Math.max(number, Number(event.lastEventId));
    addUtterance(JSON.parse(event.data));
  });
  events.addEventListener("progress", (event) => showState(JSON.parse(event.data)));
  events.addEventListener("end", (event) => { events.close(); showEnd(JSON.parse(event.data)); });
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) {
      tell("job-told", TEXTS.start.job_gone);
      showGone();
    } else {
      tell("state", TEXTS.start.reconnecting);
    }
  });
}

function showState(view) {
  part("job-name").textContent = view.file;
  if (view.state === "queued") {
    tell("state", filled(TEXTS.start.waiting, { count: view.jobs_before ?? 0 }));
    showProgress(null);
    return;
  }
  const { stage, done_s: done, total_s: total } = view.progress;
  const text = stage === "hearing" ? TEXTS.start.hearing : TEXTS.start.predicting;
  tell("state", filled(text, { done: Math.round(done), total: Math.round(total) }));
  showProgress(done, total);
}

function showEnd(view) {
  part("job-name").textContent = view.file;
  part("progress").hidden = true;
  part("again").hidden = false;
  part("erase").textContent = TEXTS.start.erase;
  if (view.state === "failed") {
    tell("state", TEXTS.start.failed);
    tell("job-told", view.error.detail);
    return;
  }
  tell("state", filled(TEXTS.start.done, { time: new Date(view.erased_at).toLocaleString() }));
  part("page").href = `${job}/timeline?format=html`;
  for (const format of ["json", "csv", "srt", "vtt"]) {
    part(format).href = `${job}/timeline?format=${format}&download=true`;
  }
  part("links").hidden = false;
}

function showGone() {
  job = null;
  history.replaceState(null, "", "/");
  part("progress").hidden = true;
  part("links").hidden = true;
  part("erase").hidden = true;
  part("again").hidden = false;
}

part("erase").addEventListener("click", async () => {
  if (sending !== null) {
    sending.abort();
    sending = null;
    backToForm(TEXTS.start.nothing_kept);
    return;
  }
  part("erase").disabled = true;
  events?.close();
  const response = await fetch(job, { method: "DELETE" }).catch(() => null);
  if (response !== null && (response.ok || response.status === 404)) {
    part("utterances").hidden = true;
    tell("job-told", "");
    tell("state", TEXTS.start.erased);
    showGone();
    part("again").focus();
  } else {
    part("erase").disabled = false;
    tell("job-told", response === null ? TEXTS.shared.no_answer : await problemOf(response));
  }
});

part("again").addEventListener("click", () => {
  history.replaceState(null, "", "/");
  part("send-form").reset();
  backToForm("");
});

// -------------------------------------------------------------------------- when it is opened

checkKey().then(() => {
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(id) && part("key-form").hidden) {
    showJob("");
    follow(`/v1/jobs/${id}`);
  }
});
