// The tab for phrases: an image and phrases in, maps and masks out.

import { $, copy, make, named, readJson, send, tell, tried } from "./common.js";

const WORDS = { idle: "", loading: "Loading the model ...", working: "Working ...", done: "Done.", stopped: "Stopped." };
let file = null, shown = 0;

export function start() {
  const tabs = { masks: $("tab-masks"), phrases: $("tab-phrases") };
  for (const [name, tab] of Object.entries(tabs)) {
    tab.addEventListener("click", () => {
      for (const [other, button] of Object.entries(tabs)) {
        $(other).hidden = other !== name;
        button.setAttribute("aria-selected", String(other === name));
      }
    });
  }
  $("g-file").addEventListener("change", () => choose($("g-file").files[0]));
  const drop = $("g-drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") choose(event.dataTransfer.files[0]);
    });
  }
  $("g-form").addEventListener("submit", (event) => { event.preventDefault(); tried(look); });
  $("g-stop").addEventListener("click", () => tried(() => send("/api/ground/stop", {})));
  $("g-copy").addEventListener("click", () => copy($("g-command").textContent));
}

function choose(chosen) {
  if (!chosen) return;
  file = chosen;
  const preview = $("g-preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(chosen);
  preview.hidden = false;
}

const base64 = (blob) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(blob);
});

async function look() {
  if (!file) return tell("Choose an image first.", true);
  const phrases = $("g-phrases").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const body = { image: await base64(file), name: file.name, phrases, sentence: $("g-sentence").value.trim(), independent: $("g-independent").checked };
  let state = await (await send("/api/ground", body)).json();
  shown = state.number;
  while (state.number === shown && (state.step === "loading" || state.step === "working")) {
    show(state);
    await new Promise((done) => setTimeout(done, 250));
    state = await readJson("/api/ground/state");
  }
  show(state);
}

function show(state) {
  const busy = state.step === "loading" || state.step === "working", bar = $("g-progress");
  $("g-start").disabled = busy;
  $("g-stop").disabled = !busy;
  bar.hidden = !busy;
  if (state.total) {
    bar.max = state.total;
    bar.value = state.done;
  } else bar.removeAttribute("value");
  $("g-state").textContent = state.step === "failed" ? "" : `${WORDS[state.step]}${busy && state.total ? ` ${state.done} of ${state.total} passes` : ""}`;
  if (state.step === "failed") tell(state.error, true);
  if (state.step === "done") results(state.result);
}

const picture = (one, text) => make("img", { src: one.address, width: String(one.width), height: String(one.height), alt: text });

function results(found) {
  const sentences = found.sentences.map((text) => make("p", { class: "soft" }, "Read as: ", named(text)));
  const figures = found.phrases.map((one) => {
    const chip = make("span", { class: "chip" });
    chip.style.backgroundColor = `rgb(${one.rgb.join(",")})`;
    const pair = make("div", { class: "pair" }, picture(one.soft, `Soft map of ${one.phrase}`), picture(one.overlay, `Mask of ${one.phrase}`));
    return make("figure", {}, pair,
      make("figcaption", {}, chip, make("b", {}, named(one.phrase)), `: presence ${one.presence.toFixed(2)}, ${(100 * one.share).toFixed(1)} % of the image`));
  });
  const wholes = found.pictures.map((one) => make("figure", {}, picture(one, one.caption), make("figcaption", {}, one.caption)));
  $("g-found").replaceChildren(...wholes, ...figures);
  $("g-found").prepend(make("div", { class: "whole" }, ...sentences));
  $("g-command").textContent = found.command;
  $("g-command-box").hidden = false;
}
