// node read_all.mjs FILE.h5
//
// Reads every dataset and attribute of a file with h5wasm and checks every NXdata group against what h5web and silx
// accept. Prints counts and failures as JSON; exit code 1 when something failed.

import * as h5wasm from "h5wasm/node";

const { H5T_class_t: CLASS } = await h5wasm.ready;
const MAX_TEXTURE = 8192; // h5web draws an image as one texture; no larger one is sure to fit
const counts = { groups: 0, datasets: 0, attributes: 0 };
const nxdata = [];
const failures = [];

function fail(path, message) {
  failures.push({ path, message });
}

function attempt(path, read) {
  try {
    return read();
  } catch (error) {
    fail(path, error.message ?? String(error));
    return undefined;
  }
}

/** Why a browser cannot show a type, or null. JavaScript has no float16, and h5web no table of nested fields. */
function unshowable({ type, size, compound_type }, nested = false) {
  if ([CLASS.H5T_INTEGER.value, CLASS.H5T_STRING.value, CLASS.H5T_ENUM.value].includes(type)) return null;
  if (type === CLASS.H5T_FLOAT.value) return size === 4 || size === 8 ? null : `float of ${8 * size} bits`;
  if (type === CLASS.H5T_COMPOUND.value && !nested) {
    const reasons = compound_type.members.map((member) => [member.name, unshowable(member, true)]);
    return reasons.filter(([, why]) => why !== null).map(([name, why]) => `field ${name}: ${why}`).join(", ") || null;
  }
  const name = Object.keys(CLASS).find((key) => CLASS[key]?.value === type) ?? "unknown type";
  return nested ? `${name} inside a compound` : name;
}

/** An attribute that may be one string or a list of them. */
function names(group, name) {
  const value = group.attrs[name]?.value ?? [];
  return typeof value === "string" ? [value] : Array.from(value);
}

function checkNXdata(group) {
  const say = (message) => fail(group.path, message);
  const child = (name, what) => {
    const found = typeof name === "string" && group.keys().includes(name) ? group.get(name) : null;
    if (found instanceof h5wasm.Dataset) return found.metadata;
    say(`${what} ${JSON.stringify(name)} is not a dataset of the group`);
    return null;
  };
  const numeric = ({ type }) => type === CLASS.H5T_INTEGER.value || type === CLASS.H5T_FLOAT.value;
  const plottable = (metadata) => numeric(metadata) || metadata.type === CLASS.H5T_ENUM.value;

  const attribute = group.attrs.signal;
  if (attribute === undefined) return say("no attribute signal");
  if (attribute.shape?.length !== 0 || typeof attribute.value !== "string") return say("signal is not a scalar string");
  const signal = child(attribute.value, "signal");
  if (signal === null) return undefined;
  if (!plottable(signal)) say("signal is not of numbers");
  if (!signal.shape?.length || signal.total_size === 0) return say("signal is scalar or empty");
  const widths = signal.shape.length > 1 ? signal.shape.slice(-2) : [];
  const curves = group.get(attribute.value).attrs.interpretation?.value === "spectrum";
  if (!curves && Math.max(...widths) > MAX_TEXTURE) say(`an image of ${widths} is too large to draw`);

  const axes = names(group, "axes");
  const scatter = signal.shape.length === 1 && axes.length === 2;
  if (axes.length > 0 && axes.length !== signal.shape.length && !scatter) say("not one axis for each dimension");
  for (const [index, name] of axes.entries()) {
    const axis = name === "." ? null : child(name, "axis");
    if (axis === null) continue;
    if (!numeric(axis)) say(`axis ${name} is not of integers or floats`);
    // Edges, one more than values, would do for h5web; silx refuses them.
    const length = signal.shape[scatter ? 0 : index];
    if (axis.shape?.length !== 1 || axis.shape[0] !== length) say(`axis ${name} has shape ${axis.shape}, not ${length}`);
  }
  for (const name of names(group, "auxiliary_signals")) {
    const other = child(name, "auxiliary signal");
    if (other !== null && (!plottable(other) || String(other.shape) !== String(signal.shape)))
      say(`auxiliary signal ${name} has another shape or is not of numbers`);
  }
  if (group.keys().includes("title")) {
    const title = child("title", "title");
    if (title !== null && (title.type !== CLASS.H5T_STRING.value || title.shape?.length !== 0))
      say("title is not a scalar string");
  }
  return undefined;
}

function visit(item, path) {
  if (!(item instanceof h5wasm.Group || item instanceof h5wasm.Dataset)) {
    return fail(path, `${item?.type ?? "nothing"}, not a group or dataset`);
  }
  for (const [name, attribute] of Object.entries(attempt(path, () => ({ ...item.attrs })) ?? {})) {
    counts.attributes += 1;
    attempt(`${path}@${name}`, () => attribute.value);
    const why = unshowable(attribute.metadata);
    if (why !== null) fail(`${path}@${name}`, why);
  }
  if (item instanceof h5wasm.Dataset) {
    counts.datasets += 1;
    attempt(path, () => item.value);
    const why = attempt(path, () => unshowable(item.metadata));
    if (why) fail(path, why);
    return undefined;
  }
  counts.groups += 1;
  if (item.attrs.NX_class?.value === "NXdata") {
    nxdata.push(path);
    attempt(path, () => checkNXdata(item));
  }
  for (const name of item.keys()) {
    const below = `${path === "/" ? "" : path}/${name}`;
    visit(attempt(below, () => item.get(name)), below);
  }
  return undefined;
}

/** The group that a viewer opens first: from the root along the attributes `default`. */
function checkDefault(file) {
  let group = file.get("/");
  const seen = [];
  while (group instanceof h5wasm.Group && group.attrs.NX_class?.value !== "NXdata" && seen.length < 10) {
    seen.push(group.path);
    const next = group.attrs.default?.value;
    group = typeof next === "string" ? group.get(next) : null;
  }
  if (!(group instanceof h5wasm.Group) || seen.length === 10) fail("/", `no NXdata by default: ${seen.join(" -> ")}`);
}

if (process.argv.length !== 3) {
  console.error("usage: node read_all.mjs FILE.h5");
  process.exit(2);
}
const file = new h5wasm.File(process.argv[2], "r");
visit(file.get("/"), "/");
attempt("/", () => checkDefault(file));
file.close();
console.log(JSON.stringify({ ...counts, nxdata, failures }, null, 1));
process.exitCode = failures.length > 0 ? 1 : 0;
