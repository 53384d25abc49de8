// What is filtered and sorted stands behind the # of the address, so that it survives when the page is loaded again.
const filter = document.getElementById("filter");
const [head] = document.querySelectorAll("thead tr");
const rows = [...document.querySelectorAll("tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);

const show = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const [row, text] of rows) row.hidden = !words.every((word) => text.includes(word));
  document.getElementById("shown").textContent = words.length ? `${rows.filter(([row]) => !row.hidden).length} shown` : "";
};
const remember = () => {
  const sorted = [...head.cells].findIndex((cell) => cell.hasAttribute("aria-sort"));
  const state = new URLSearchParams();
  if (filter.value) state.set("filter", filter.value);
  if (sorted >= 0) state.set(head.cells[sorted].getAttribute("aria-sort"), sorted);
  location.replace(`#${state}`);
};

const state = new URLSearchParams(location.hash.slice(1));
filter.value = state.get("filter") ?? "";
for (const [order, clicks] of [["ascending", 1], ["descending", 2]]) {
  const button = state.has(order) && head.cells[Number(state.get(order))]?.querySelector("button");
  for (let click = 0; button && click < clicks; click++) button.click();
}
filter.parentElement.hidden = false;
filter.addEventListener("input", () => { show(); remember(); });
head.addEventListener("click", remember);
show();

const made = new Date(document.querySelector("header time").dateTime);
const age = () => {
  const minutes = Math.floor((Date.now() - made) / 60000);
  document.getElementById("age").textContent = minutes < 1 ? "" : minutes < 120 ? `, ${minutes} min ago` : `, ${Math.floor(minutes / 60)} h ago`;
};
age();
setInterval(age, 60000);
const seconds = Number(document.body.dataset.reload);
if (seconds) setInterval(() => { if (document.activeElement !== filter) location.reload(); }, 1000 * seconds);
