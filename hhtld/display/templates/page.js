for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentNode, column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("n");
    const order = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    const words = new Intl.Collator("en", {numeric: true});
    const keyed = Array.from(body.rows, row => {
      const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
      return [text === "" || !numeric ? text : Number(text), row];
    });
    // What a tensor does not have stays at the end in both directions.
    keyed.sort(([a], [b]) => a === "" || b === "" ? (a === "") - (b === "")
      : order * (numeric ? a - b : words.compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
  });
}
