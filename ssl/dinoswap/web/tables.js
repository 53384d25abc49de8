"use strict";
// A click on a column's head sorts its table, unless the column is unsorted; without this script the tables stand as they
// were written.
const value = (row, column, words) => {
  const text = row.cells[column].textContent.trim();
  if (words) return text;
  const number = parseFloat(text.replace("\u2212", "-"));
  return Number.isNaN(number) ? -Infinity : number;
};

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.classList.contains("unsorted")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      const words = head.classList.contains("words");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column, words), value(b, column, words)];
        const order = words ? x.localeCompare(y, undefined, { numeric: true }) : x === y ? 0 : x - y;
        return ascending ? order : -order;
      });
      body.append(...rows);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    });
  });
}
