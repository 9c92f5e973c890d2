// The 3D/2D viewer: NiiVue, which ipyniivue's widget module holds, driven as anywidget specifies it: a model with
// get, set, on, off, send and save_changes, whose values are those of the Python classes NiiVue and Volume.

const element = (id) => document.getElementById(id);
const cases = JSON.parse(element("viewer-cases").textContent);
const viewer = element("viewer");
const stage = viewer.querySelector(".stage");
const readout = viewer.querySelector("output");

const VIEWS = { slices: 3, axial: 0, coronal: 1, sagittal: 2, solid: 4 };
const WINDOWS = { abdomen: null, liver: [-20, 140], all: [-200, 310] };
const NEVER = 0;

function bytesOf(id) {
  const text = atob(element(id).textContent);
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

class Model {
  constructor(values, children) {
    this.values = values;
    this.handlers = new Map();
    this.widget_manager = { get_model: async (name) => children.get(name) };
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    this.values[name] = value;
    this.tell(`change:${name}`);
  }
  on(name, handler) {
    this.handlers.set(name, [...(this.handlers.get(name) ?? []), handler]);
  }
  off(name, handler) {
    const others = handler ? (this.handlers.get(name) ?? []).filter((other) => other !== handler) : [];
    this.handlers.set(name, others);
  }
  tell(name, ...details) {
    (this.handlers.get(name) ?? []).forEach((handler) => handler(...details));
  }
  command(type, ...data) {
    this.tell("msg:custom", { type, data }, []);
  }
  send(message) {
    if (message.event === "location_change") describeLocation(message.data);
  }
  save_changes() {}
}

// A volume's model; `loaded` is kept when NiiVue has read it, which it says by giving it an id. What it has read once
// it turns into arrays of its own, so that the colours are given anew each time.
function volumeModel(name, id, colours, values) {
  const none = { name: null, data: null };
  const model = new Model(
    {
      ...{ id: "", name, path: { name: `${name}.nii.gz`, data: new DataView(bytesOf(id).buffer) } },
      ...{ paired_img_path: none, opacity: 1, colormap: "gray", colormap_negative: "", colormap_label: null },
      ...{ cal_min: null, cal_max: null, frame_4d: 0, colorbar_visible: false, colormap_invert: false },
      ...values,
    },
    new Map(),
  );
  model.expect = () => {
    model.values.colormap_label = colours && { ...colours, lut: [...colours.lut] };
    model.loaded = new Promise((resolve) => model.on("change:id", resolve));
  };
  return model;
}

const children = new Map();
const state = { number: null, networks: new Set(), truth: true, scan: true, errors: false, view: "slices", window: "abdomen", opacity: 0.45 };
let main = null;
let onStage = [];
let queue = Promise.resolve();

async function niivueModule() {
  const packed = new Blob([bytesOf("niivue")]).stream();
  const code = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).blob();
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    return (await import(address)).default;
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("it has no WebGL2");
  const widget = await niivueModule();
  const options = {
    ...{ sliceType: VIEWS[state.view], multiplanarShowRender: NEVER, multiplanarPadPixels: 4 },
    ...{ isRadiologicalConvention: true, atlasOutline: 1, backColor: [0, 0, 0, 1], fontColor: [0.75, 0.8, 0.8, 1] },
    ...{ crosshairWidth: 0.3, crosshairWidthUnit: "percent", crosshairGap: 2, crosshairColor: [0.37, 0.83, 0.66, 0.8], textHeight: 0.035, loadingText: "" },
    ...{ viewModeHotKey: "", clipPlaneHotKey: "", logLevel: "error" },
  };
  const model = new Model(
    {
      ...{ opts: options, volumes: [], meshes: [], height: stage.clientHeight, graph: {} },
      ...{ clip_plane_depth_azi_elev: [2, 0, 0], background_masks_overlays: 0 },
      ...{ draw_lut: null, draw_opacity: 0.8, draw_fill_overwrites: true },
    },
    children,
  );
  await widget.initialize({ model });
  await widget.render({ model, el: stage });
  model.command("set_render_azimuth_elevation", 180, 12);
  const canvas = stage.querySelector("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.addEventListener("keydown", press);
  canvas.addEventListener("pointerdown", () => canvas.focus({ preventScroll: true }));
  // The page scrolls under the wheel until the image is selected.
  const keep = (event) => document.activeElement === canvas || event.stopPropagation();
  stage.addEventListener("wheel", keep, { capture: true });
  main = model;
}

// What is on the stage, back to front. NiiVue draws edges only of the first map over a scan, and lights the surface
// only of what is at the back, so that in 3D a label map stands alone.
function layers() {
  const labels = [...state.networks].sort().map((index) => `${state.errors ? "errors" : "prediction"}-${index}`);
  if (state.view === "solid") return [labels[0] ?? "truth"];
  return ["scan", ...(state.truth ? ["truth"] : []), ...labels];
}

function valuesOf(what) {
  const { window: abdomen } = cases[state.number];
  if (what === "scan") {
    const [low, high] = WINDOWS[state.window] ?? abdomen;
    return { opacity: state.scan ? 1 : 0, cal_min: low, cal_max: high };
  }
  const solid = state.view === "solid";
  const edgeAlone = what === "truth" && state.networks.size > 0;
  return { opacity: solid ? 1 : edgeAlone ? 0 : state.opacity };
}

function labelsOf(what) {
  const { labels, errors } = cases[state.number];
  return what.startsWith("errors") ? errors : labels;
}

// The name of a layer's model. In 3D it is another one: what is at the back must be new on the stage, since NiiVue
// takes the first volume that comes for it.
function child(what) {
  const id = `volume-${state.number}-${what}`;
  const name = state.view === "solid" ? `${id}-solid` : id;
  if (!children.has(name)) {
    const { luts } = cases[state.number];
    const lut = luts[what.split("-")[0]];
    const labels = labelsOf(what);
    const colours = what === "scan" ? null : { lut, min: 0, max: labels.length - 1, labels };
    children.set(name, volumeModel(what, id, colours, valuesOf(what)));
  }
  return name;
}

// Fails if NiiVue fails, which says so by a rejection that nobody handles, or takes too long; until `signal` is aborted.
function trouble(signal) {
  return new Promise((_, reject) => {
    const caught = (event) => {
      event.preventDefault();
      reject(event.reason);
    };
    window.addEventListener("unhandledrejection", caught, { signal });
    const tooLong = new Error("NiiVue did not read the volumes within two minutes");
    const timer = setTimeout(reject, 120_000, tooLong);
    signal.addEventListener("abort", () => clearTimeout(timer));
  });
}

async function read(names) {
  const coming = names.filter((name) => !onStage.includes(name)).map((name) => children.get(name));
  const done = new AbortController();
  coming.forEach((model) => model.expect());
  const failure = trouble(done.signal);
  main.set("volumes", names.map((name) => `IPY_MODEL_${name}`));
  try {
    await Promise.race([Promise.all(coming.map((model) => model.loaded)), failure]);
  } finally {
    done.abort();
  }
  await new Promise((resolve) => setTimeout(resolve)); // NiiVue goes on with what it has read
  onStage = names;
  for (const name of children.keys()) if (!onStage.includes(name)) children.delete(name);
}

function setView() {
  const options = main.get("opts");
  if (options.sliceType === VIEWS[state.view]) return;
  const solid = state.view === "solid";
  // The light first: changing the view draws everything anew, lighting only what is at the back.
  main.command("set_volume_render_illumination", solid ? 0.6 : 0);
  main.set("opts", { ...options, sliceType: VIEWS[state.view] });
  for (const part of viewer.querySelectorAll("fieldset.flat")) part.disabled = solid;
}

async function draw() {
  const shown = layers();
  const names = shown.map(child);
  if (state.view !== "solid") setView(); // each step is drawn, and slices are drawn faster
  if (names.join() !== onStage.join()) await read(names);
  shown.forEach((what, index) => {
    const model = children.get(names[index]);
    for (const [name, value] of Object.entries(valuesOf(what))) {
      if (model.get(name) !== value) model.set(name, value);
    }
  });
  setView();
  move(0, 0, 0); // says anew what is there
}

function move(...steps) {
  if (onStage.length) main.command("move_crosshair_in_vox", ...steps);
}

function goTo(voxel) {
  move(-1e6, -1e6, -1e6); // NiiVue moves by steps and stops at the first voxel
  move(...voxel);
}

function describeLocation({ mm, values }) {
  const { networks } = cases[state.number];
  const shown = layers();
  if (values.length !== shown.length) return;
  const parts = shown.map((what, index) => {
    const value = Math.round(values[index].value);
    if (what === "scan") return `${value} HU`;
    const name = what === "truth" ? "Truth" : networks[Number(what.split("-")[1])].name;
    return `${name}: ${labelsOf(what)[value]}`;
  });
  const [x, y, z] = mm;
  readout.textContent = [...parts, `x ${x.toFixed(0)}, y ${y.toFixed(0)}, z ${z.toFixed(0)} mm`].join(" · ");
}

function button(text, colour, action) {
  const made = document.createElement("button");
  made.type = "button";
  if (colour) made.append(Object.assign(document.createElement("i"), { style: `background: ${colour}` }));
  made.append(text);
  made.addEventListener("click", action);
  return made;
}

function describeCase() {
  const shown = cases[state.number];
  element("viewer-title").textContent = `${shown.dataset}, ${shown.case}`;
  const wrong = shown.networks.filter(({ wrong }) => wrong).map(({ name, wrong }) => `${name}: ${wrong}.`);
  element("viewer-why").textContent = [`${shown.why}.`, ...wrong].join(" ");
  stage.querySelector("canvas").setAttribute("aria-label", `Scan, truth and prediction of ${shown.dataset}, ${shown.case}`);
  element("viewer-networks").replaceChildren(
    ...shown.networks.map(({ name }, index) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: state.networks.has(index) });
      box.addEventListener("change", () => {
        if (box.checked) state.networks.add(index);
        else state.networks.delete(index);
        redraw();
      });
      label.append(box, name);
      return label;
    }),
  );
  const errors = shown.networks.filter(({ error }) => error).map(({ name, error }) =>
    button(`Largest error of ${name}: ${error.kind} ${error.organ}`, null, () => goTo(error.voxel)),
  );
  const organs = shown.organs.map((organ, index) => {
    const made = button(organ, shown.colours[index], () => goTo(shown.places[organ]));
    made.disabled = !(organ in shown.places);
    made.classList.toggle("unlabelled", !shown.annotated[index]);
    made.title = shown.annotated[index] ? "Go there" : "Not annotated in this case: there is no truth to compare with";
    return made;
  });
  element("viewer-organs").replaceChildren(...organs, ...errors);
  for (const row of document.querySelectorAll("tr[data-shown]")) {
    const isShown = Number(row.dataset.shown) === state.number && state.networks.has(Number(row.dataset.network));
    row.toggleAttribute("aria-current", isShown);
    if (isShown) row.setAttribute("aria-current", "true");
  }
}

function firstPlace() {
  const { networks, places } = cases[state.number];
  const errors = [...state.networks].map((index) => networks[index].error).filter(Boolean);
  return errors[0]?.voxel ?? Object.values(places)[0];
}

function say(text) {
  const words = viewer.querySelector(".start");
  words.replaceChildren(text);
  words.hidden = !text;
}

function fail(error) {
  const why = error?.message ?? error;
  viewer.dataset.state = "failed";
  readout.textContent = "";
  if (main === null) {
    say(`The viewer cannot be shown in this browser: ${why}. The pictures below show the same cases.`);
    return;
  }
  // What NiiVue has of this case is not known: the next one begins with an empty stage.
  onStage = [];
  children.clear();
  main.set("volumes", []);
  say(`This cannot be shown: ${why}. Choose another case; the pictures below show this one.`);
}

function succeed() {
  viewer.dataset.state = "shown";
  say("");
}

// One after the other: NiiVue reads volumes while others may be asked for.
function soon(action) {
  viewer.dataset.state = "busy";
  queue = queue.then(action).then(succeed, fail);
  return queue;
}

function redraw() {
  return soon(draw);
}

function show(number, network) {
  return soon(async () => {
    if (main === null) {
      say("Starting …");
      await new Promise((resolve) => setTimeout(resolve)); // lets the browser draw the words
      await start();
      for (const part of viewer.querySelectorAll("fieldset")) part.disabled = false;
    }
    state.number = number;
    state.networks = new Set([network ?? cases[number].networks.length - 1]);
    viewer.dataset.number = number;
    describeCase();
    await draw();
    const place = firstPlace();
    if (place) goTo(place);
  });
}

const MOVES = {
  ...{ ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0] },
  ...{ PageUp: [0, 1, 0], PageDown: [0, -1, 0] },
};

const BOXES = { s: "scan", t: "truth", e: "errors" };

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const views = Object.keys(VIEWS);
  const steps = { n: 1, b: -1 };
  if (event.key in MOVES) move(...MOVES[event.key]);
  else if (views[Number(event.key) - 1]) choose("view", views[Number(event.key) - 1]);
  else if (event.key in steps) show((state.number + steps[event.key] + cases.length) % cases.length);
  else if (event.key in BOXES) viewer.querySelector(`[name=${BOXES[event.key]}]`).click();
  else if (event.key === "f") fullScreen();
  else if (event.key === "p") viewer.querySelector("#viewer-networks input").click();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else viewer.requestFullscreen();
}

function choose(name, value) {
  viewer.querySelector(`[name=${name}][value=${value}]`).checked = true;
  state[name] = value;
  redraw();
}

for (const input of viewer.querySelectorAll("[name]")) {
  input.addEventListener("input", () => {
    if (input.type === "checkbox") state[input.name] = input.checked;
    else state[input.name] = input.type === "range" ? Number(input.value) : input.value;
    redraw();
  });
}

for (const row of document.querySelectorAll("tr[data-shown]")) {
  const open = () => {
    show(Number(row.dataset.shown), Number(row.dataset.network));
    stage.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  row.tabIndex = 0;
  row.addEventListener("click", open);
  row.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  });
}

for (const made of document.querySelectorAll("button[data-shown]")) {
  made.hidden = false;
  made.addEventListener("click", () => {
    show(Number(made.dataset.shown));
    stage.scrollIntoView({ block: "nearest" });
  });
}

// Until the viewer is opened, the picture of its first case lies behind the button.
const opener = viewer.querySelector(".start button");
const picture = document.querySelector(`figcaption [data-shown="${opener.dataset.shown}"]`)?.closest("figure");
if (picture) opener.before(Object.assign(new Image(), { src: picture.querySelector("img").src, alt: "" }));

element("viewer-full").addEventListener("click", fullScreen);
viewer.hidden = false;
