// A candidate beside the query, with its scores and what moved them; and what both pages are made of.
const $ = (id) => document.getElementById(id);
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    name === "text" ? (made.textContent = value) : name.startsWith("on") ? made.addEventListener(name.slice(2), value) : made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const image = (picture, alt) => (picture.data ? element("img", { src: `data:image/webp;base64,${picture.data}`, alt, loading: "lazy" }) : element("span", { text: alt }));
const tone = (value, alpha = 1) => `rgb(${value > 0 ? "214 47 39" : "33 102 172"} / ${alpha})`;

function seen(picture, map) {
  const cells = (map ?? []).map(([x, y, value]) => {
    const side = Math.max(5, 100 / Math.sqrt(map.length));
    return element("i", { style: `left:${x}%;top:${y}%;width:${side}%;height:${side}%;background:${tone(value, Math.min(0.72, Math.abs(value) / 100))}` });
  });
  return element("div", { class: map ? "seen mapped" : "seen" }, image(picture, picture.name), ...cells);
}

function bars(moved, names) {
  const name = (place) => (place === 0 ? "the query" : `place ${place}` + (names[place - 1] ? `, ${names[place - 1]}` : ""));
  return moved.images.flatMap(([place, value], i) => [element("span", { text: i === 1 ? "itself" : name(place) }), element("b", { style: `width:${Math.abs(value)}%;background:${tone(value)}`, title: `${value} % of the largest` })]);
}

// facts: pairs of a name and a value. moved: what moved the score, where it is known. names: what to call the list's places.
function detail(query, candidate, facts, moved, names) {
  const [pair, list] = [$("detail").querySelector(".pair"), $("detail").querySelector("dl")];
  pair.replaceChildren(...[["query", query], ["candidate", candidate]].map(([what, picture]) => element("figure", {}, seen(picture, moved?.[what]), element("figcaption", { class: "gain", text: `${what}: ${picture.name}` }))));
  list.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
  $("moved").hidden = !moved;
  $("moved").querySelector(".bars").replaceChildren(...(moved ? bars(moved, names) : []));
  $("detail").showModal();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "light" : "dark";
  document.dispatchEvent(new Event("theme"));
}

$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("detail").querySelector("button").addEventListener("click", () => $("detail").close());
theme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
