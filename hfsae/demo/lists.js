// One's own list of latents with notes. It is kept in the browser, by the name of the SAE.
(() => {
  const key = (box) => `hfsae-list:${box.dataset.list}`;
  const read = (box) => {
    try {
      const kept = JSON.parse(localStorage.getItem(key(box)) ?? "[]");
      return Array.isArray(kept) ? kept.filter((item) => Number.isInteger(item?.latent)) : [];
    } catch (error) { return []; }
  };
  const write = (box, items) => {
    try { localStorage.setItem(key(box), JSON.stringify(items)); } catch (error) { /* private mode */ }
    draw(box);
  };
  const node = (tag, values, ...children) => {
    const made = Object.assign(document.createElement(tag), values);
    made.append(...children);
    return made;
  };

  function row(box, item) {
    const open = node("button", {type: "button", className: "hf-id", textContent: item.latent, title: `open latent ${item.latent}`});
    [open.dataset.do, open.dataset.at] = ["open", item.latent];
    const note = node("input", {type: "text", value: String(item.note ?? ""), placeholder: "a note", maxLength: 300});
    note.setAttribute("aria-label", `note on latent ${item.latent}`);
    note.addEventListener("change", () => write(box, read(box).map((i) => (i.latent === item.latent ? {...i, note: note.value} : i))));
    const remove = node("button", {type: "button", textContent: "remove"});
    remove.setAttribute("aria-label", `remove latent ${item.latent} from the list`);
    remove.addEventListener("click", () => write(box, read(box).filter((i) => i.latent !== item.latent)));
    const what = node("span", {className: "hf-what"}, node("b", {textContent: String(item.name ?? "")}), note);
    return node("li", {}, open, what, node("span", {className: "hf-acts"}, remove));
  }

  function draw(box) {
    const items = read(box), now = Number(box.dataset.latent), kept = items.some((i) => i.latent === now);
    const add = node("button", {type: "button", className: "hf-button", disabled: kept,
      textContent: kept ? `Latent ${now} is in the list` : `Keep latent ${now}`});
    add.addEventListener("click", () => write(box, [...read(box), {latent: now, name: box.dataset.name, note: ""}]));
    const rows = node("ol", {className: "hf-rows hf-plain"}, ...items.map((item) => row(box, item)));
    const lines = [["latent", "name", "note"], ...items.map((i) => [i.latent, i.name ?? "", i.note ?? ""])];
    const text = lines.map((line) => line.join("\t") + "\n").join("");
    const take = node("a", {className: "hf-link", textContent: "Download the list", download: "latents.tsv",
      href: `data:text/tab-separated-values;charset=utf-8,${encodeURIComponent(text)}`});
    box.replaceChildren(add, rows, ...(items.length ? [take] : []));
  }

  hfsae.onDrawn.push((panel) => {
    for (const box of panel.querySelectorAll("[data-list]:empty")) draw(box);
  });
})();
