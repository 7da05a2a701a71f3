// The page: open a photograph, draw a hole, have it filled, compare, download.

import { createEditor } from "./editor.js";

const $ = (id) => document.getElementById(id);
const show = { models: [], limits: { bytes: Infinity, pixels: Infinity } };
let source = null; // the photograph as it will be sent, a Blob
let filled = null;
let busy = false;
const editor = createEditor($("viewport"), { onChange: refresh });

function refresh() {
  $("undo").disabled = !editor.canUndo;
  $("redo").disabled = !editor.canRedo;
  $("clear").disabled = !editor.canUndo;
  $("fill").disabled = busy || source === null || !editor.canUndo;
}

function say(text) { $("status").textContent = text; }

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = text === "";
  if (text) {
    say("");
    $("error").scrollIntoView({ block: "nearest" });
  }
}

async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("The service does not answer. Is it still running?");
    }
    if (answer.status === 401) {
      await askForToken(token !== null);
      continue;
    }
    if (answer.ok) return answer;
    let why = `the service answered ${answer.status}`;
    try { why = (await answer.json()).error ?? why; } catch { /* no JSON: the status has to do */ }
    throw new Error(why[0].toUpperCase() + why.slice(1));
  }
}

function askForToken(wasWrong) {
  if (wasWrong) fail("That token is not right.");
  return new Promise((resolve) => {
    $("login").addEventListener("close", () => {
      sessionStorage.setItem("token", $("token").value.trim());
      $("token").value = "";
      fail("");
      resolve();
    }, { once: true });
    $("login").showModal();
  });
}

async function open(blob, name) {
  fail("");
  if (blob.size > show.limits.bytes) {
    fail(`${name} has ${megabytes(blob.size)}; at most ${megabytes(show.limits.bytes)} are taken.`);
    return;
  }
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    fail(`${name} is not an image that this browser can show. Use a JPEG, PNG, WebP or AVIF file.`);
    return;
  }
  if (image.width * image.height > show.limits.pixels) {
    fail(`${name} has ${image.width} x ${image.height} pixels; at most ${show.limits.pixels.toLocaleString("en")} are taken.`);
    return;
  }
  source = blob;
  $("edit").hidden = false;
  $("result").hidden = true;
  const natural = Math.max(4, Math.round(Math.min(image.width, image.height) / 12));
  $("size").max = Math.max(40, natural * 4);
  setSize(natural);
  editor.load(image);
  for (const [field, limit] of [["left", image.width - 1], ["width", image.width], ["top", image.height - 1], ["height", image.height]]) {
    $("numbers").elements[field].max = limit;
  }
  say(`${name}: ${image.width} x ${image.height} pixels. Paint over what should be filled.`);
  refresh();
}

function megabytes(bytes) { return `${(bytes / (1 << 20)).toFixed(1)} MB`; }

function setSize(value) {
  editor.size = Math.min(Math.max(2, Math.round(value)), Number($("size").max));
  $("size").value = editor.size;
  $("size-shown").textContent = editor.size;
}

function setTool(name) {
  editor.tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === name));
  }
}

async function request(model) {
  const form = new FormData();
  form.append("image", source, "image");
  form.append("mask", await editor.png(), "mask.png");
  form.append("polarity", "white");
  form.append("model", model);
  const began = performance.now();
  const answer = await call("fill", { method: "POST", body: form });
  const blob = await answer.blob();
  return { blob, answer, seconds: (performance.now() - began) / 1000 };
}

async function working(text, work) {
  busy = true;
  refresh();
  fail("");
  say(text);
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    fail(error.message);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
    refresh();
  }
}

function fill() {
  return working("Filling ...", async () => {
    if (editor.isEmpty()) throw new Error("The hole is empty: paint over what should be filled.");
    const { blob, answer, seconds } = await request($("model").value);
    for (const id of ["before", "after"]) if ($(id).src) URL.revokeObjectURL($(id).src);
    filled = blob;
    $("before").src = URL.createObjectURL(source);
    $("after").src = URL.createObjectURL(blob);
    $("download").href = $("after").src;
    $("gallery").replaceChildren();
    $("result").hidden = false;
    setSplit(50);
    await $("after").decode();
    const version = answer.headers.get("x-version");
    const note = answer.headers.get("x-note");
    const pixels = Number(answer.headers.get("x-pixels")).toLocaleString("en");
    say(`Filled ${pixels} pixels in ${seconds.toFixed(1)} s with ${answer.headers.get("x-model")}` +
      `${version ? `, version ${version}` : ""}.${note ? ` (${note})` : ""}`);
    $("result").scrollIntoView({ behavior: "smooth", block: "nearest" });
  });
}

function setSplit(value) {
  $("split").value = value;
  $("after").style.clipPath = `inset(0 0 0 ${value}%)`;
  $("edge").style.left = `${value}%`;
}

function beside() {
  return working("Filling with each method ...", async () => {
    $("gallery").replaceChildren();
    if (editor.isEmpty()) throw new Error("The hole is empty: paint over what should be filled.");
    const around = editor.surroundings();
    for (const { name, title } of show.models) {
      say(`Filling with ${title ?? name} ...`);
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      try {
        const { blob, seconds } = await request(name);
        const part = await createImageBitmap(blob, ...around);
        const image = document.createElement("canvas");
        image.setAttribute("role", "img");
        image.setAttribute("aria-label", `The hole, filled by ${title ?? name}`);
        image.width = part.width;
        image.height = part.height;
        image.getContext("2d").drawImage(part, 0, 0);
        caption.textContent = `${title ?? name}: ${seconds.toFixed(1)} s`;
        figure.append(image, caption);
      } catch (error) {
        caption.textContent = `${title ?? name}: ${error.message}`;
        figure.append(caption);
      }
      $("gallery").append(figure);
    }
    say(`The same hole, filled by ${show.models.length} methods.`);
  });
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) open(file, file.name);
  $("file").value = "";
});
$("sample").addEventListener("change", () => {
  const name = $("sample").value;
  if (name) working(`Opening ${name} ...`, async () => open(await (await call(`samples/${name}`)).blob(), name));
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (file) open(file, file.name || "The pasted image");
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const file = [...(event.dataTransfer?.files ?? [])][0];
  if (file) open(file, file.name);
});
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => setTool(button.dataset.tool));
}
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("undo").addEventListener("click", () => editor.undo());
$("redo").addEventListener("click", () => editor.redo());
$("clear").addEventListener("click", () => editor.clear());
$("zoom-in").addEventListener("click", () => editor.zoomBy(1.5));
$("zoom-out").addEventListener("click", () => editor.zoomBy(1 / 1.5));
$("zoom-fit").addEventListener("click", () => editor.fit());
$("fill").addEventListener("click", fill);
$("beside").addEventListener("click", beside);
$("split").addEventListener("input", () => setSplit(Number($("split").value)));
$("again").addEventListener("click", () => {
  open(filled, "The filled photograph");
  $("edit").scrollIntoView({ block: "start" });
});
$("draw-hole").addEventListener("click", () => working("Drawing a hole ...", async () => {
  const seed = Math.floor(Math.random() * 1e9);
  const query = new URLSearchParams({
    strategy: $("strategy").value, width: editor.photo.width, height: editor.photo.height, seed,
  });
  editor.addHole(await createImageBitmap(await (await call(`hole?${query}`)).blob()));
  say(`A hole of the strategy ${$("strategy").value}.`);
}));
$("numbers").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = (name) => Number($("numbers").elements[name].value);
  editor.addBox(value("left"), value("top"), value("width"), value("height"));
  say(`A box of ${value("width")} x ${value("height")} pixels was added to the hole.`);
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, dialog")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && !event.shiftKey) editor.undo();
    else if (key === "y" || key === "z") editor.redo();
    else return;
  } else if (event.altKey) return;
  else if (key === "b") setTool("brush");
  else if (key === "e") setTool("eraser");
  else if (key === "r") setTool("box");
  else if (key === "[") setSize(editor.size / 1.25);
  else if (key === "]") setSize(editor.size * 1.25 + 1);
  else return;
  event.preventDefault();
});
window.addEventListener("resize", () => { if (source) editor.fit(); });

working("Looking which models there are ...", async () => {
  const found = await (await call("models")).json();
  show.models = found.models;
  show.limits = found.limits;
  const option = (value, text) => new Option(text, value);
  $("model").append(...found.models.map(({ name, title, version }) => option(name, (title ?? name) + (version ? ` (version ${version})` : ""))));
  $("strategy").append(...found.strategies.map((name) => option(name, name.replaceAll("_", " "))));
  $("sample").append(...found.samples.map((name) => option(name, name)));
  say("");
});
