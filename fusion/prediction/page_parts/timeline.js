"use strict";
// The page of a timeline: player, blocks, transcript and panel show one moment.
// All times are integer milliseconds from the file's start, as in the timeline's JSON. Text goes
// into the page as text alone: what is said in a file is hostile to it.
(() => {
  const byName = (name) => document.getElementById(name);
  const timeline = JSON.parse(byName("timeline").textContent);
  const utterances = timeline.utterances;
  const lengthMs = Math.max(timeline.media.duration_ms, ...utterances.map((each) => each.end_ms), 1);
  const media = byName("media");
  const stretch = byName("stretch");
  const scroll = byName("scroll");
  const cursor = byName("cursor");
  const panel = byName("now");
  const follow = byName("follow");
  const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const TICK_PX = 90;
  const MOST_ZOOM = Math.max(1, lengthMs / 10_000); // ten seconds fill the width

  let atMs = 0; // what the page shows, also where nothing can be played
  let current = null;
  let zoom = 1;
  let isPlayable = media !== null;

  for (const each of document.querySelectorAll(".scripted")) each.hidden = false;
  for (const each of document.querySelectorAll("button.seek")) each.disabled = false;
  panel.hidden = utterances.length === 0;

  // ---------------------------------------------------------------- what is said at a moment

  const pad = (value, digits) => String(value).padStart(digits, "0");
  // "1:02:03.4", as the page's other times are written
  const clock = (ms) => {
    const tenths = Math.floor(ms / 100);
    const [hours, minutes] = [Math.floor(tenths / 36_000), Math.floor(tenths / 600) % 60];
    const seconds = `${pad(Math.floor(tenths / 10) % 60, 2)}.${tenths % 10}`;
    return hours ? `${hours}:${pad(minutes, 2)}:${seconds}` : `${minutes}:${seconds}`;
  };
  // The last that has begun and has not ended: utterances may overlap.
  const utteranceAt = (ms) => utterances.findLast((each) => each.start_ms <= ms && ms < each.end_ms) ?? null;
  const percent = (share) => `${Math.round(share * 100)} %`;

  // ------------------------------------------------------------------------------- the panel

  const element = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const bars = (title, probabilities, label, inkOf) => {
    const table = element("table");
    table.append(element("caption", title));
    for (const [name, share] of Object.entries(probabilities)) {
      const row = table.insertRow();
      const head = element("th", name);
      head.scope = "row";
      const cell = element("td", percent(share), `e-bar ${inkOf(name)}`);
      cell.style.setProperty("--share", `${share * 100}%`);
      row.append(head, cell);
      if (name === label) row.className = "chosen";
    }
    return table;
  };
  const modalities = (told) => {
    const table = element("table");
    table.append(element("caption", "What decided, and what each alone would say"));
    for (const [name, part] of Object.entries(told)) {
      const row = table.insertRow();
      const head = element("th", name);
      head.scope = "row";
      row.append(head);
      if (part.present) {
        const against = part.support < 0 ? " against" : "";
        row.append(element("td", `${percent(part.share)}${against}`));
        row.append(element("td", `${part.alone.emotion}, ${part.alone.sentiment}`, "words"));
      } else {
        const reason = element("td", part.reason, "words soft");
        reason.colSpan = 2;
        row.append(reason);
      }
    }
    return table;
  };
  const INK_OF_SENTIMENT = { positive: "e-disgust", negative: "e-anger", neutral: "e-neutral" };
  const describe = (each) => {
    const times = `${clock(each.start_ms)} to ${clock(each.end_ms)}`;
    const where = element("p", `${each.id}, ${times}${each.speaker ? `, ${each.speaker}` : ""}`, "soft");
    const parts = [where, element("blockquote", each.text || "(no words are known)", "text")];
    if (each.error) parts.push(element("p", each.error, "warning"));
    if (each.divided) parts.push(element("p", "The modalities disagree: one alone predicts positive, another negative.", "badge"));
    const tables = element("div", "", "pair");
    if (each.emotion) {
      tables.append(bars("Emotion", each.emotion.probabilities, each.emotion.label, (name) => `e-${name}`));
      const sentiment = element("div");
      sentiment.append(
        bars("Sentiment", each.sentiment.probabilities, each.sentiment.label, (name) => INK_OF_SENTIMENT[name]),
        modalities(each.modalities),
      );
      tables.append(sentiment);
    } else {
      tables.append(modalities(each.modalities));
    }
    return [...parts, tables];
  };

  const show = (each) => {
    if (each === current) return;
    for (const old of document.querySelectorAll("tr[aria-current]")) old.removeAttribute("aria-current");
    for (const old of document.querySelectorAll("rect.current")) old.classList.remove("current");
    current = each;
    if (each === null) return; // between utterances the panel keeps the last one
    panel.replaceChildren(...describe(each));
    for (const block of document.querySelectorAll(`rect[data-id="${each.id}"]`)) block.classList.add("current");
    const row = byName(each.id);
    row.setAttribute("aria-current", "true");
    if (follow.checked) scrollWithin(byName("transcript"), row);
  };
  // Not scrollIntoView: it would move the page as well, away from the player.
  const scrollWithin = (box, row) => {
    const [inside, wanted] = [box.getBoundingClientRect(), row.getBoundingClientRect()];
    const above = wanted.top - inside.top - 48; // below the table's head
    const below = wanted.bottom - inside.bottom + 16;
    if (above < 0) box.scrollTop += above;
    else if (below > 0) box.scrollTop += Math.min(below, above);
  };

  const showTime = (ms) => {
    atMs = ms;
    cursor.style.left = `${(100 * ms) / lengthMs}%`;
    const each = utteranceAt(ms);
    stretch.setAttribute("aria-valuenow", String(Math.round(ms)));
    stretch.setAttribute("aria-valuetext", each?.emotion ? `${clock(ms)}, ${each.emotion.label}` : clock(ms));
    show(each);
  };
  const keepCursorInSight = () => {
    if (zoom === 1 || !follow.checked) return;
    const x = (stretch.clientWidth * atMs) / lengthMs;
    if (x < scroll.scrollLeft || x > scroll.scrollLeft + scroll.clientWidth * 0.95) {
      scroll.scrollLeft = x - scroll.clientWidth * 0.1;
    }
  };

  const seek = (ms) => {
    const wantedMs = Math.min(Math.max(ms, 0), lengthMs);
    if (isPlayable) media.currentTime = wantedMs / 1000;
    showTime(wantedMs);
    keepCursorInSight();
  };

  // ------------------------------------------------------------------------------ the player

  const follows = () => {
    showTime(Math.round(media.currentTime * 1000));
    keepCursorInSight();
    // timeupdate comes four times a second: too seldom for a cursor.
    if (!media.paused && !media.ended) requestAnimationFrame(follows);
  };
  if (media !== null) {
    panel.setAttribute("aria-live", "off");
    for (const event of ["seeked", "timeupdate"]) {
      media.addEventListener(event, () => {
        if (media.paused) showTime(Math.round(media.currentTime * 1000));
      });
    }
    media.addEventListener("play", follows);
    media.addEventListener("error", () => {
      isPlayable = false;
      byName("unplayable").hidden = false;
    });
    media.addEventListener("loadedmetadata", () => {
      isPlayable = true;
      byName("unplayable").hidden = true;
      if (atMs > 0) media.currentTime = atMs / 1000;
    });
    // The error may have come before this script ran.
    if (media.error !== null) media.dispatchEvent(new Event("error"));
    byName("choose").addEventListener("change", (event) => {
      const [file] = event.target.files;
      if (file) media.src = URL.createObjectURL(file);
    });
    const captions = media.addTextTrack("captions", "Words and emotions", "en");
    for (const each of utterances) {
      if (each.end_ms <= each.start_ms) continue;
      const emotion = each.emotion ? `${each.emotion.label} ${percent(each.emotion.confidence)}` : "no prediction";
      const cue = new VTTCue(each.start_ms / 1000, each.end_ms / 1000, "");
      const said = `[${emotion}] ${each.speaker ? `${each.speaker}: ` : ""}${each.text}`;
      cue.text = said.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
      captions.addCue(cue);
    }
  }

  // ---------------------------------------------------------------------- stepping and seeking

  const step = (by) => {
    if (utterances.length === 0) return;
    let wanted;
    if (by > 0) wanted = utterances.find((each) => each.start_ms > atMs) ?? utterances.at(-1);
    else wanted = utterances.findLast((each) => each.start_ms < atMs) ?? utterances[0];
    panel.setAttribute("aria-live", "polite"); // who steps wants to hear it
    seek(wanted.start_ms);
    if (media?.paused ?? true) return;
    panel.setAttribute("aria-live", "off");
  };
  byName("previous").addEventListener("click", () => step(-1));
  byName("next").addEventListener("click", () => step(1));
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".seek");
    if (link === null) return;
    event.preventDefault();
    const each = utterances.find((one) => one.id === link.dataset.id);
    seek(each.start_ms);
  });
  stretch.addEventListener("click", (event) => {
    const box = stretch.getBoundingClientRect();
    seek(Math.round((lengthMs * (event.clientX - box.left)) / box.width));
  });
  document.addEventListener("keydown", (event) => {
    // The player and forms have keys of their own.
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("video, audio, input")) return;
    const onButton = event.target.closest("button, a, summary") !== null;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "Home" && event.target === stretch) seek(0);
    else if (event.key === "End" && event.target === stretch) seek(lengthMs);
    else if (event.key === " " && !onButton && isPlayable) {
      if (media.paused) media.play();
      else media.pause();
    } else return;
    event.preventDefault();
  });

  // ---------------------------------------------------------------------------------- zooming

  const drawTicks = () => {
    const msPerPixel = lengthMs / stretch.clientWidth;
    const stepS = STEPS_S.find((each) => each * 1000 >= TICK_PX * msPerPixel) ?? STEPS_S.at(-1);
    const ticks = [];
    for (let ms = 0; ms < lengthMs; ms += stepS * 1000) {
      const tick = element("li", clock(ms).replace(/\.0$/, ""));
      tick.style.left = `${(100 * ms) / lengthMs}%`;
      ticks.push(tick);
    }
    byName("ticks").replaceChildren(...ticks);
  };
  const setZoom = (wanted) => {
    zoom = Math.min(Math.max(wanted, 1), MOST_ZOOM);
    stretch.style.width = `${100 * zoom}%`;
    byName("out").disabled = zoom === 1;
    byName("in").disabled = zoom === MOST_ZOOM;
    drawTicks();
    scroll.scrollLeft = (stretch.clientWidth * atMs) / lengthMs - scroll.clientWidth / 2;
  };
  byName("out").addEventListener("click", () => setZoom(zoom / 2));
  byName("in").addEventListener("click", () => setZoom(zoom * 2));
  new ResizeObserver(drawTicks).observe(scroll);
  setZoom(1);

  // An address that ends in #u0003 opens at that utterance.
  const named = utterances.find((each) => `#${each.id}` === location.hash);
  if (named) seek(named.start_ms);
  else if (utterances.length > 0) {
    showTime(0);
    if (current === null) panel.replaceChildren(...describe(utterances[0]));
  }
})();
