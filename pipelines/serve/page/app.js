// The page: what was clicked, what the server answered, and what of it is shown.
import { COLOURS, decode, paint } from "./masks.js";

const at = (id) => document.getElementById(id);
const view = at("view"), slider = at("slider");
const RADIUS = 6; // Of a click, in pixels of the screen; a shorter drag is a click as well.

const state = {
  image: null, // {id, width, height, bitmap, blob, name}
  points: [], // {x, y, positive}
  box: null, // {x1, y1, x2, y2}
  masks: [], // As the server gives them, each with its `pixels` once it was shown.
  shown: 0, // Which of them; with `all` every one of them is seen, and this is marked.
  all: false,
  cross: null, // Where the keyboard points.
  drag: null,
};
let turn = 0; // Of the newest request: answers to older ones come too late.

const names = (id) => at(id).value.split(",").map((one) => one.trim()).filter(Boolean).slice(0, 64);
const vocabulary = () => ({ objects: names("objects"), parts: names("parts") });
const tool = () => document.querySelector("[name=tool]:checked").value;

function say(text, bad = false) {
  at("busy").textContent = text;
  at("busy").classList.toggle("bad", bad);
}

async function ask(path, body, type) {
  const begun = performance.now();
  const answer = await fetch(path, { method: "POST", body, headers: { "Content-Type": type } });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ code: "", message: answer.statusText }));
    throw Object.assign(new Error(problem.message), { code: problem.code });
  }
  return { answer, took: performance.now() - begun };
}

// Ask about the image, and where the server has forgotten it upload it again first.
async function askAboutImage(what, body) {
  const send = () => ask(`api/images/${state.image.id}/${what}`, JSON.stringify(body), "application/json");
  try {
    return await send();
  } catch (error) {
    if (error.code !== "unknown_image") throw error;
    await ask("api/images", state.image.blob, "application/octet-stream");
    return send();
  }
}

// Run a request, say what it does meanwhile, and give its answer only if no newer one was begun.
async function newest(text, work) {
  const mine = ++turn;
  say(text);
  try {
    const { answer, took } = await work();
    const found = await answer.json();
    if (mine !== turn) return null;
    say("");
    const stages = Object.entries(found.time_ms).filter(([name]) => name !== "total");
    at("time").textContent = `${Math.round(took)} ms: ` + stages.map(([name, ms]) => `${name} ${Math.round(ms)}`).join(", ");
    return found;
  } catch (error) {
    if (mine === turn) say(error.message, true);
    return null;
  }
}

async function open(blob, name = "image") {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  const found = await newest("Encoding the image…", () => ask("api/images", blob, "application/octet-stream"));
  if (!found) return;
  Object.assign(state, { image: { ...found, bitmap, blob, name }, points: [], box: null, masks: [], all: false, cross: null });
  view.width = found.width;
  view.height = found.height;
  view.style.setProperty("--ratio", found.width / found.height); // Small images are shown as large as others.
  view.hidden = false;
  at("drop").hidden = true;
  for (const id of ["tools", "levels", "downloads"]) at(id).disabled = id !== "tools";
  show();
}

async function answer() {
  if (!state.box && !state.points.some((one) => one.positive)) {
    Object.assign(state, { masks: [], all: false });
    turn++;
    say(state.points.length ? "A negative click needs a positive one, or a box" : "");
    return show();
  }
  const prompt = { points: state.points, box: state.box, ...vocabulary() };
  const found = await newest("", () => askAboutImage("answer", prompt));
  if (found) Object.assign(state, { masks: found.masks, shown: found.chosen ?? 0, all: false });
  show();
}

async function everything() {
  Object.assign(state, { points: [], box: null });
  const found = await newest("Segmenting everything…", () => askAboutImage("everything", vocabulary()));
  if (found) Object.assign(state, { masks: found.masks, shown: 0, all: true });
  if (found?.masks.length === 0) say("Nothing that the model is sure of");
  show();
}

function pixelsOf(mask) {
  mask.pixels ??= decode(mask.rle);
  return mask.pixels;
}

function draw() {
  const { image, masks, shown, all, points, box, cross, drag } = state;
  if (!image) return;
  const { width, height } = image, context = view.getContext("2d");
  const scale = width / (view.clientWidth || width); // Image pixels to one of the screen.
  context.clearRect(0, 0, width, height);
  if (image.bitmap) context.drawImage(image.bitmap, 0, 0, width, height);
  if (masks.length) {
    const layer = new ImageData(width, height), thick = Math.max(Math.round(1.5 * scale), 1);
    // The largest first, so that what is small lies above; the one that is marked above all.
    const order = all ? masks.map((_, i) => i).sort((a, b) => masks[b].area - masks[a].area) : [];
    for (const i of [...order.filter((one) => one !== shown), shown]) {
      const fill = all ? (i === shown ? 190 : 100) : 120;
      paint(layer.data, pixelsOf(masks[i]), width, height, COLOURS[all ? i % COLOURS.length : 0], fill, thick);
    }
    const sheet = new OffscreenCanvas(width, height);
    sheet.getContext("2d").putImageData(layer, 0, 0);
    context.drawImage(sheet, 0, 0);
  }
  context.lineWidth = 2 * scale;
  const outline = drag?.box ?? box;
  if (outline) {
    context.setLineDash([6 * scale, 4 * scale]);
    context.strokeStyle = "#fff";
    context.strokeRect(outline.x1, outline.y1, outline.x2 - outline.x1, outline.y2 - outline.y1);
    context.setLineDash([]);
  }
  for (const { x, y, positive } of points) {
    context.beginPath();
    context.arc(x, y, RADIUS * scale, 0, 7);
    context.fillStyle = positive ? "#19b35a" : "#e5383b";
    context.fill();
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath();
    const arm = 3 * scale;
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    if (positive) {
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
    }
    context.stroke();
  }
  if (cross && document.activeElement === view) {
    context.beginPath();
    context.moveTo(cross.x - 12 * scale, cross.y);
    context.lineTo(cross.x + 12 * scale, cross.y);
    context.moveTo(cross.x, cross.y - 12 * scale);
    context.lineTo(cross.x, cross.y + 12 * scale);
    context.strokeStyle = "#ffd400";
    context.stroke();
  }
}

function called(mask) {
  const [object, part] = [mask.objects[0], mask.parts[0]];
  return [object && `${object.name} ${object.score.toFixed(2)}`, part && `${part.name} ${part.score.toFixed(2)}`].filter(Boolean);
}

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent?.append(made);
  return made;
}

function show() {
  const { masks, shown, all } = state;
  at("levels").disabled = at("downloads").disabled = masks.length === 0;
  slider.max = Math.max(masks.length - 1, 0);
  slider.value = shown;
  at("level").textContent = masks.length ? `${shown + 1} of ${masks.length}` : state.image ? "no mask yet" : "no image yet";
  slider.setAttribute("aria-valuetext", masks.length ? called(masks[shown]).join(", ") || `mask ${shown + 1}` : "none");
  at("masks").replaceChildren(...masks.map((mask, i) => {
    const row = document.createElement("li"), button = element("button", "", row);
    button.type = "button";
    button.setAttribute("aria-current", String(i === shown));
    button.addEventListener("click", () => pick(i));
    const colour = COLOURS[all ? i % COLOURS.length : 0];
    element("i", "", button).style.background = `rgb(${colour})`;
    const text = element("span", "", button), [first, ...others] = called(mask);
    element("b", first ?? `mask ${i + 1}`, text);
    element("small", ` ${[...others, `${mask.area} px`].join(", ")}`, text);
    element("span", mask.quality.toFixed(2), button).title = "predicted IoU";
    return row;
  }));
  draw();
}

function pick(i) {
  state.shown = i;
  show();
  at("masks").children[i]?.scrollIntoView({ block: "nearest" });
}

function click(x, y, positive) {
  if (state.all) Object.assign(state, { masks: [], all: false });
  state.points.push({ x, y, positive });
  draw();
  answer();
}

function place(event) {
  const area = view.getBoundingClientRect(), { width, height } = state.image;
  const inside = (value, side) => Math.min(Math.max(value, 0), side - 0.01);
  return {
    x: inside(((event.clientX - area.left) / area.width) * width, width),
    y: inside(((event.clientY - area.top) / area.height) * height, height),
  };
}

view.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 && event.button !== 2) return;
  view.setPointerCapture(event.pointerId);
  state.drag = { from: place(event), x: event.clientX, y: event.clientY, right: event.button === 2 || event.altKey, box: null };
});
view.addEventListener("pointermove", (event) => {
  const { drag } = state;
  if (!drag || tool() !== "box" || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < RADIUS) return;
  const to = place(event), { from } = drag;
  drag.box = { x1: Math.min(from.x, to.x), y1: Math.min(from.y, to.y), x2: Math.max(from.x, to.x), y2: Math.max(from.y, to.y) };
  draw();
});
view.addEventListener("pointerup", () => {
  const { drag } = state;
  state.drag = null;
  if (!drag) return;
  if (drag.box) {
    if (state.all) Object.assign(state, { masks: [], all: false });
    Object.assign(state, { box: drag.box, points: [] });
    answer();
  } else {
    click(drag.from.x, drag.from.y, !drag.right && tool() !== "negative");
  }
});
view.addEventListener("pointercancel", () => { state.drag = null; draw(); });
view.addEventListener("contextmenu", (event) => event.preventDefault());
view.addEventListener("blur", draw);

function undo() {
  if (state.points.length) state.points.pop();
  else state.box = null;
  answer();
}

function clear() {
  Object.assign(state, { points: [], box: null, masks: [], all: false });
  turn++;
  say("");
  show();
}

view.addEventListener("keydown", (event) => {
  if (!state.image) return;
  const { width, height } = state.image, step = Math.max(width, height) / (event.shiftKey ? 200 : 40);
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  state.cross ??= { x: width / 2, y: height / 2 };
  if (event.key in moves) {
    const [dx, dy] = moves[event.key];
    state.cross.x = Math.min(Math.max(state.cross.x + dx * step, 0), width - 1);
    state.cross.y = Math.min(Math.max(state.cross.y + dy * step, 0), height - 1);
    draw();
  } else if (event.key === "Enter" || event.key === " ") {
    click(state.cross.x, state.cross.y, !event.altKey && tool() !== "negative");
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (!state.image || event.target.matches("input[type=text]") || event.ctrlKey || event.metaKey) return;
  const other = { positive: "negative", negative: "positive", box: "positive" }[tool()];
  if (event.key === "z") undo();
  else if (event.key === "Escape") clear();
  else if (event.key === "e") everything();
  else if (event.key === "n") document.querySelector(`[name=tool][value=${other}]`).checked = true;
});

slider.addEventListener("input", () => pick(Number(slider.value)));
at("undo").addEventListener("click", undo);
at("clear").addEventListener("click", clear);
at("everything").addEventListener("click", everything);
for (const id of ["objects", "parts"]) {
  at(id).addEventListener("change", () => { if (state.image) (state.all ? everything : answer)(); });
}
at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, file.name);
  event.target.value = "";
});
const stage = at("stage");
for (const kind of ["dragenter", "dragover"]) {
  stage.addEventListener(kind, (event) => { event.preventDefault(); stage.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) stage.addEventListener(kind, () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file, file.name || "pasted");
});
window.addEventListener("resize", draw);

for (const button of at("downloads").querySelectorAll("button")) {
  button.addEventListener("click", async () => {
    const { masks, shown, all, image } = state, { format } = button.dataset;
    const chosen = (all ? masks : [masks[shown]]).map(({ rle, objects, quality }) => (
      { rle, name: objects[0]?.name ?? null, score: Math.min(Math.max(quality, 0), 1) }
    ));
    const stem = image.name.replace(/\.[^.]*$/, "") || "image";
    try {
      const body = JSON.stringify({ file_name: stem, masks: chosen });
      const { answer: file } = await ask(`api/masks.${format}`, body, "application/json");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await file.blob());
      link.download = `${stem}.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    } catch (error) {
      say(error.message, true);
    }
  });
}

const about = await fetch("api/about").then((answer) => answer.json()).catch(() => null);
if (about) {
  at("model").textContent = about.model;
  at("objects").value = about.objects.join(", ");
  at("parts").value = about.parts.join(", ");
} else {
  say("The server does not answer", true);
}
