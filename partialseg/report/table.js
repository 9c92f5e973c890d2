// Sorts and filters the table of cases. Without it the table stands as it was written: the worst first.

const table = document.getElementById("case-table");
const body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];

function key(row, column) {
  const cell = row.cells[column];
  return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent.trim().toLowerCase();
}

function compare(first, second) {
  if (typeof first === "number") return first - second || 0;
  return first.localeCompare(second, undefined, { numeric: true });
}

function sortBy(column) {
  const direction = headers[column].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  headers.forEach((header) => header.removeAttribute("aria-sort"));
  headers[column].setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const isMissing = (value) => value === Infinity;
  const rows = [...body.rows].map((row) => ({ row, value: key(row, column) }));
  // What has no number stays last, whichever way the others are sorted.
  rows.sort((a, b) => isMissing(a.value) - isMissing(b.value) || sign * compare(a.value, b.value));
  body.append(...rows.map(({ row }) => row));
}

headers.forEach((header, column) => {
  header.querySelector("button").addEventListener("click", () => sortBy(column));
});

const filter = document.getElementById("filter");
for (const part of [filter, ...document.querySelectorAll(".scripted")]) part.hidden = false;
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
