// The search through the guides, and the menu of narrow screens. PAGES is in search-index.js.
const up = document.body.dataset.up;
const input = document.querySelector("nav input");
const found = document.querySelector("#found");
const menu = document.querySelector(".menu");
const button = document.querySelector("nav button");

button.onclick = () => button.setAttribute("aria-expanded", menu.classList.toggle("open"));

// A word counts 20 in the title, 5 in a heading, 1 in the text; each word must be somewhere.
function score(page, words) {
  let sum = 0;
  for (const word of words) {
    const heads = page.headings.filter(([, name]) => name.toLowerCase().includes(word)).length;
    const times = page.text.toLowerCase().split(word).length - 1;
    const own = 20 * page.title.toLowerCase().includes(word) + 5 * heads + Math.min(times, 4);
    if (!own) return 0;
    sum += own;
  }
  return sum;
}

input.oninput = () => {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.replaceChildren();
  if (!words.length) return;
  const hits = PAGES.map((page) => [score(page, words), page]).filter(([n]) => n);
  hits.sort((a, b) => b[0] - a[0]);
  for (const [, page] of hits.slice(0, 8)) {
    const head = page.headings.find(([, name]) => name.toLowerCase().includes(words[0]));
    const at = page.text.toLowerCase().indexOf(words[0]);
    const link = document.createElement("a");
    link.href = up + page.href + (head ? `#${head[0]}` : "");
    link.textContent = page.title;
    const around = document.createElement("small");
    around.textContent = page.text.slice(Math.max(0, at - 40), at + 80);
    const item = document.createElement("li");
    item.append(link, around);
    found.append(item);
  }
  if (!hits.length) found.append(Object.assign(document.createElement("li"), { textContent: "Nothing found" }));
};
