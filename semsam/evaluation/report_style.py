"""How a report looks, and the few lines of script in it."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --shade: #f3f5f7;
  --accent: #0550ae; --low: #b02a00; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --text: #e6e9ed; --soft: #a3adb8; --line: #343c46;
  --shade: #1b212a; --accent: #79b8ff; --low: #ff9b7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 2.5vw, 2rem) 4rem; max-width: 1500px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
a { color: var(--accent); }
nav a { margin-right: 1rem; white-space: nowrap; }
p, dl, ol, ul { margin: .4rem 0; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
.soft, small { color: var(--soft); font-size: .85em; }
.wide { overflow-x: auto; margin: .5rem 0; border: 1px solid var(--line); border-radius: 6px; max-height: 85vh; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
th { font-weight: 600; }
tr > :first-child { text-align: left; position: sticky; left: 0; background: var(--page); min-width: 7.5rem;
  max-width: 16rem; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; background: var(--shade); z-index: 1; white-space: nowrap; }
thead tr > :first-child { background: var(--shade); z-index: 2; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 400; }
td small, th small { display: block; }
td small { white-space: nowrap; }
sup { line-height: 0; }
.images :is(th, td) { text-align: left; } .wide:has(.images) { max-height: none; }
.below { color: var(--low); } strong.below::after { content: " \\25be"; }
.absent { color: var(--soft); }
.best { background: var(--shade); font-weight: 600; }
th button { all: unset; cursor: pointer; color: var(--accent); }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--accent); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1rem;
  align-items: start; }
.figures .broad { grid-column: 1 / -1; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .82rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.grid { overflow-x: auto; } .grid img { max-width: none; width: max(100%, 60rem); }
pre { overflow-x: auto; padding: .75rem; background: var(--shade); border-radius: 6px; font-size: .82rem;
  overflow-wrap: normal; }
ol.notes { font-size: .82rem; color: var(--soft); columns: 28rem; padding-left: 1.6rem; }
@media (max-width: 600px) { body { font-size: 14px; } th, td { padding: .25rem .4rem; }
  tr > :first-child { min-width: 6rem; max-width: 8.5rem; } dl.facts { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .3rem; } }
@page { size: landscape; margin: 12mm; }
@media print { :root { --page: #fff; --text: #000; --soft: #444; --line: #bbb; --shade: #eee; --accent: #000; }
  body { max-width: none; padding: 0; font-size: 9pt; } .wide { overflow: visible; max-height: none; border: 0; }
  th, tr > :first-child { position: static; } td small { white-space: normal; } figure, tr { break-inside: avoid; }
  nav { display: none; } .grid img { width: 100%; } pre { white-space: pre-wrap; } }
"""

# A click on a header sorts by it, numbers from the highest, words from the first; a second click turns it around.
SCRIPT = """
for (const button of document.querySelectorAll("table.sorts th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th"), body = header.closest("table").tBodies[0], column = header.cellIndex;
    const text = row => row.cells[column].textContent.trim(), number = row => parseFloat(text(row));
    const rows = [...body.rows], isNumber = column > 0;
    const before = header.getAttribute("aria-sort");
    const rises = before ? before === "descending" : !isNumber;
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", rises ? "ascending" : "descending");
    const known = rows.filter(row => text(row)), unknown = rows.filter(row => !text(row));
    known.sort((a, b) => (rises ? 1 : -1) * (isNumber ? number(a) - number(b) : text(a) < text(b) ? -1 : 1));
    body.append(...known, ...unknown);
  });
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
"""
