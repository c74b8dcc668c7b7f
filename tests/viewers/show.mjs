// node show.mjs FILE.h5 FOLDER [PATH...]
//
// Opens paths of a file ("/" if none is given) in h5web in a headless Chromium, writes FOLDER/0.png, 1.png, ...
// and prints as JSON what each page shows. Exit code 1 when a page shows an error or never finishes drawing.
// CHROMIUM names the browser's program.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import puppeteer from "puppeteer-core";

const TIMEOUT = 30_000; // of one page
const VIEW = { width: 1440, height: 900 };
// h5web draws with WebGL, which Chromium has without a graphics card only through SwiftShader.
const FLAGS = [
  "--no-sandbox",
  "--disable-dev-shm-usage",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
  "--ignore-gpu-blocklist",
  "--hide-scrollbars",
];

/** Everything that the page asks for: address -> [type, bytes]. */
async function served(file) {
  const here = (name) => fileURLToPath(new URL(`h5web/${name}`, import.meta.url));
  const { outputFiles } = await build({
    entryPoints: [here("app.jsx")],
    bundle: true,
    write: false,
    outdir: "/",
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"' },
    logLevel: "error",
  });
  const found = new Map([["/", ["text/html", await readFile(here("index.html"))]]]);
  for (const { path, contents } of outputFiles) {
    found.set(`/${basename(path)}`, [path.endsWith(".css") ? "text/css" : "text/javascript", contents]);
  }
  found.set("/favicon.ico", ["image/x-icon", ""]);
  found.set(`/${encodeURIComponent(basename(file))}`, ["application/x-hdf5", await readFile(file)]);
  return found;
}

/** Runs in the browser: what stands on the page, or what it still waits for. */
function look() {
  const area = document.querySelector('[class*="_visArea_"]');
  const all = (selector) => Array.from(area?.querySelectorAll(selector) ?? []);
  // h5web's own boxes for what went wrong. Its class names are _name_hash.
  const errors = document.querySelectorAll('[class*="_error_"], [class*="_detailedError_"], .fallback');
  const canvases = all("canvas");
  const text = all("*")
    .filter((element) => element.childElementCount === 0 && element.checkVisibility())
    .map((element) => element.textContent.trim())
    .filter((words) => words !== "");
  if (document.querySelector('[data-testid^="Loading"]')) return { waiting: "h5web is still loading" };
  if (errors.length === 0) {
    // A canvas stands there, transparent, for some frames before the first curve is on it.
    const blank = (canvas) => {
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
      copy.drawImage(canvas, 0, 0);
      return copy.getImageData(0, 0, canvas.width, canvas.height).data.every((value) => value === 0);
    };
    if (text.length === 0) return { waiting: "the page is empty" };
    if (canvases.some(blank)) return { waiting: "the canvas is blank" };
  }
  return {
    vis: document.querySelector('[aria-label="Visualization"] [aria-selected="true"]')?.textContent ?? null,
    text,
    headings: all('[role="columnheader"]').map((cell) => cell.textContent),
    canvases: canvases.map((canvas) => canvas.getBoundingClientRect().toJSON()),
    errors: Array.from(errors, (element) => element.textContent),
  };
}

/** Runs in the browser: waits for frames, not for time, so that a busy machine gets what it needs to lay out. */
async function frames() {
  for (let i = 0; i < 8; i++) await new Promise(requestAnimationFrame);
}

/** Opens one path; what is there counts once two pictures in a row are the same. */
async function show(page, path, picture) {
  const deadline = Date.now() + TIMEOUT;
  let seen = {};
  let png = null;
  try {
    await page.evaluate((name) => window.showPath(name), path);
    for (let last = null; !(png && last?.equals(png)); ) {
      if (Date.now() > deadline) throw new Error(`${seen.waiting ?? "it keeps changing"} after ${TIMEOUT / 1000} s`);
      await page.evaluate(frames);
      seen = await page.evaluate(look);
      last = png;
      png = seen.waiting ? null : Buffer.from(await page.screenshot());
    }
  } catch (error) {
    seen = { ...seen, errors: [...(seen.errors ?? []), error.message] };
  }
  await writeFile(picture, png ?? (await page.screenshot()));
  return { path, picture, ...seen };
}

/** Returns a page with h5web on it, and the list of what it says on its console. */
async function opened(browser, address) {
  const page = await browser.newPage();
  page.setDefaultTimeout(TIMEOUT);
  const said = [];
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("console", (message) => {
    const text = message.text();
    // What the driver says about its own speed, "[.WebGL-0x...", is not about the file.
    if (["error", "warn"].includes(message.type()) && !text.startsWith("[.WebGL")) said.push(text);
  });
  await page.setViewport(VIEW);
  await page.goto(address);
  await page.waitForFunction("window.showPath");
  return [page, said];
}

const [file, folder, ...paths] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node show.mjs FILE.h5 FOLDER [PATH...]");
  process.exit(2);
}
await mkdir(folder, { recursive: true });
const found = await served(file);
const server = createServer((request, response) => {
  const [type, bytes] = found.get(new URL(request.url, "http://localhost").pathname) ?? [];
  response.writeHead(type ? 200 : 404, { "content-type": type ?? "text/plain" }).end(bytes);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
let browser = null;
try {
  browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS,
    timeout: TIMEOUT,
  });
  const address = `http://127.0.0.1:${server.address().port}/?file=${encodeURIComponent(basename(file))}`;
  const [page, said] = await opened(browser, address);
  const shown = [];
  for (const [index, path] of (paths.length > 0 ? paths : ["/"]).entries()) {
    said.length = 0;
    const seen = await show(page, path, join(folder, `${index}.png`));
    shown.push({ ...seen, console: [...said] });
  }
  console.log(JSON.stringify(shown, null, 1));
  if (shown.some(({ errors }) => errors.length > 0)) process.exitCode = 1;
} finally {
  await browser?.close();
  server.closeAllConnections?.();
  server.close();
}
