"use strict";
const PICTURE_EVERY_MS = 333;
const PICTURE_SIDE = 320;
const WAITING_BYTES = 64 * 1024;       // that are not sent yet: pictures wait for better times
const MOST_WAITING_BYTES = 320 * 1024; // ten seconds of sound
let now = null;       // the session that is going on
let recording = null; // the last one, if it is to be kept

document.addEventListener("key-entered", () => part("start").focus());

// ---------------------------------------------------------------------------------- it begins

part("live-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const session = now = { samples: 0, provisional: new Map() };
  begin(session).catch((error) => {
    if (now !== session) { return; }  // its end was told already
    tell("live-told", wordsOf(error));
    end();
  });
});

function wordsOf(error) {
  if (error.name === "NotAllowedError") { return TEXTS.live.not_allowed; }
  if (error.name === "NotFoundError") { return TEXTS.live.not_found; }
  return error.message;
}

// It may be over after each wait: whoever is asked for the microphone may think for long.
async function begin(session) {
  tell("live-told", "");
  tell("now", "");
  part("start").disabled = true;
  part("kept").hidden = true;
  part("utterances").hidden = true;
  part("utterances").tBodies[0].replaceChildren();
  recording = null;
  if (!navigator.mediaDevices) {
    throw new Error(TEXTS.live.insecure);
  }
  tell("state", TEXTS.live.connecting);
  session.socket = await connect();
  tell("state", TEXTS.live.asking);
  const withCamera = part("camera").checked;
  session.media = await navigator.mediaDevices.getUserMedia({
    // As it is: what makes a voice pleasant changes what is heard in it.
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    video: withCamera ? { width: { ideal: 640 }, height: { ideal: 480 } } : false,
  });
  if (now !== session) { letGo(session.media); return; }
  await listen(session);
  if (withCamera && now === session) { await look(session); }
  if (now !== session) { return; }
  if (part("keep").checked) { record(session); }
  part("stop").hidden = false;
  part("stop").focus();
  part("start").hidden = true;
  tell("state", TEXTS.live.listening);
}

// Resolves when the service has said which settings hold.
async function connect() {
  const answer = await fetch("/v1/live/tickets", { method: "POST" }).catch(() => null);
  if (answer === null) { throw new Error(TEXTS.shared.no_answer); }
  if (answer.status === 401) { part("key-form").hidden = false; part("key").focus(); }
  if (!answer.ok) { throw new Error(await problemOf(answer)); }
  const { ticket } = await answer.json();
  const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`;
  const socket = new WebSocket(address, ["meld.live.v1", `meld.ticket.${ticket}`]);
  return new Promise((done, failed) => {
    socket.addEventListener("message", (event) => {
      const told = JSON.parse(event.data);
      if (told.type === "session.created") { socket.send(JSON.stringify({ type: "session.update" })); }
      if (told.type === "session.updated") { done(socket); }
      show(told);
    });
    socket.addEventListener("close", () => {
      failed(new Error(TEXTS.live.not_connected));
      if (now !== null && now.socket === socket) {
        if (!now.isClosed) { tell("live-told", TEXTS.live.connection_lost); }
        end();
      }
    });
  });
}

async function listen(session) {
  const { media, socket } = session;
  const sound = session.sound = new AudioContext();
  await sound.audioWorklet.addModule("/page/live-sound.js");
  if (now !== session) { return; }
  const source = sound.createMediaStreamSource(media);
  const worklet = new AudioWorkletNode(sound, "live-sound", { numberOfOutputs: 0 });
  session.worklet = worklet;
  worklet.port.onmessage = ({ data }) => {
    if (data === null) {  // that was all of it
      if (socket.readyState === WebSocket.OPEN) { socket.send(JSON.stringify({ type: "session.close" })); }
      return;
    }
    if (socket.readyState !== WebSocket.OPEN) { return; }
    if (socket.bufferedAmount > MOST_WAITING_BYTES) {
      tell("live-told", TEXTS.live.too_slow);
      socket.close();
      return;
    }
    socket.send(data.content);
    session.samples += data.samples;
    part("level").value = data.loudest;
  };
  source.connect(worklet);
}

async function look(session) {
  const { media, socket } = session;
  const seen = part("seen");
  seen.srcObject = media;
  seen.hidden = false;
  await seen.play();
  if (now !== session) { return; }
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, PICTURE_SIDE / Math.max(seen.videoWidth, seen.videoHeight));
  canvas.width = Math.round(seen.videoWidth * scale);
  canvas.height = Math.round(seen.videoHeight * scale);
  const surface = canvas.getContext("2d");
  session.camera = setInterval(() => {
    if (socket.bufferedAmount > WAITING_BYTES) { return; }
    const atMs = Math.round(session.samples / 16);
    surface.drawImage(seen, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(async (jpeg) => {
      const content = new Uint8Array(5 + jpeg.size);
      content[0] = 2;
      new DataView(content.buffer).setUint32(1, atMs, true);
      content.set(new Uint8Array(await jpeg.arrayBuffer()), 5);
      if (!session.isClosed && socket.readyState === WebSocket.OPEN) { socket.send(content); }
    }, "image/jpeg", 0.8);
  }, PICTURE_EVERY_MS);
}

// Whole, and not in pieces: a part of what a recorder gives cannot be played.
function record(session) {
  const recorder = new MediaRecorder(session.media);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    recording = new Blob(parts, { type: recorder.mimeType });
    part("kept").hidden = recording.size === 0;
  });
  recorder.start();
  session.recorder = recorder;
}

// ------------------------------------------------------------------------------ what is told

function show(told) {
  if (told.type === "session.created") { now.provisionalMs = told.provisional_every_ms; }
  if (told.type === "utterance.start") { tell("now", TEXTS.live.speaking); }
  if (told.type === "measurement.result" && !told.final && told.utterance.emotion) {
    const values = { modalities: modalitiesOf(told.utterance), prediction: predictionOf(told.utterance) };
    tell("now", filled(TEXTS.live.so_far, values));
  }
  if (told.type === "measurement.result" && told.final) { addUtterance(told.utterance); }
  if (told.type === "utterance.end") { tell("now", told.utterances.length ? "" : TEXTS.live.no_speech); }
  if (told.type === "error") { tell("live-told", told.detail); }
  if (told.type === "session.closed") {
    now.isClosed = true;
    const { received, produced } = told;
    tell("state", filled(received.pictures ? TEXTS.live.ended_with_pictures : TEXTS.live.ended, {
      seconds: Math.round(received.audio_ms / 1000),
      pictures: received.pictures,
      utterances: produced.utterances,
    }));
    tell("now", "");
  }
}

function modalitiesOf(utterance) {
  return Object.entries(utterance.modalities)
    .filter(([, its]) => its.present).map(([name]) => TEXTS.live[name] ?? name).join(TEXTS.live.and);
}

// ------------------------------------------------------------------------------------ it ends

part("stop").addEventListener("click", () => {
  part("stop").disabled = true;
  tell("state", TEXTS.live.finishing);
  clearInterval(now.camera);
  now.worklet.port.postMessage(null);
});

function letGo(media) { media?.getTracks().forEach((track) => track.stop()); }

function end() {
  if (now === null) { return; }
  clearInterval(now.camera);
  if (now.recorder?.state === "recording") { now.recorder.stop(); }
  letGo(now.media);
  now.sound?.close();
  if (now.socket?.readyState === WebSocket.OPEN) { now.socket.close(); }
  if (!now.isClosed) { tell("state", ""); }
  now = null;
  part("seen").hidden = true;
  part("seen").srcObject = null;
  part("level").value = 0;
  part("stop").hidden = true;
  part("stop").disabled = false;
  part("start").hidden = false;
  part("start").disabled = false;
  part("start").focus();
}

// ------------------------------------------------------------------------------------ keeping

part("send-kept").addEventListener("click", async () => {
  part("send-kept").disabled = true;
  tell("kept-told", "");
  const ending = recording.type.includes("mp4") ? "mp4" : "webm";
  const response = await fetch(`/v1/jobs?filename=recording.${ending}&hearing=prompt`, {
    method: "POST",
    headers: { "Content-Type": recording.type.split(";")[0] },
    body: recording,
  }).catch(() => null);
  part("send-kept").disabled = false;
  if (response === null) { tell("kept-told", TEXTS.shared.no_answer); return; }
  if (!response.ok) { tell("kept-told", await problemOf(response)); return; }
  location.assign(`/#${(await response.json()).id}`);
});

part("drop-kept").addEventListener("click", () => {
  recording = null;
  part("kept").hidden = true;
  part("start").focus();
});

checkKey();
