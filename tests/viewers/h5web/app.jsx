// h5web on one file of this server: ?file=<address>&path=<path inside the file>

import { App } from "@h5web/app";
import "@h5web/app/styles.css";
import { H5WasmBufferProvider } from "@h5web/h5wasm";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const file = query.get("file");
const response = await fetch(file);
if (!response.ok) throw new Error(`${file}: ${response.status}`);

const buffer = await response.arrayBuffer();
const root = createRoot(document.getElementById("root"));

/** Opens a path, from nothing but the file; show.mjs calls it again for every path. */
window.showPath = (path) => {
  const app = <App key={path} initialPath={path} disableDarkMode />;
  flushSync(() =>
    root.render(
      <H5WasmBufferProvider filename={file.split("/").pop()} buffer={buffer}>
        {app}
      </H5WasmBufferProvider>,
    ),
  );
};
window.showPath(query.get("path") ?? "/");
