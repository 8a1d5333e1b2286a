// The map browser. Text from the data is only ever set as text, never as HTML.
"use strict";
(() => {
  const PAGE = 48;
  const models = Object.keys(MAPS);
  if (!models.length) return;
  const form = document.getElementById("filters");
  const gallery = document.getElementById("gallery");
  const more = document.getElementById("more");
  const dialog = document.getElementById("pair");
  const field = (name) => form.elements.namedItem(name);
  let listed = [];
  let shown = 0;
  let open = 0;

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const options = (select, entries, chosen) => {
    const wanted = chosen ?? select.value;
    select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    if (entries.some(([value]) => String(value) === String(wanted))) select.value = wanted;
  };
  const data = () => MAPS[field("model").value];
  const mapName = ([variant, method, label]) => (method === "gradient" && variant === "guided" ? "Ours" : `${label}, ${variant}`);
  const place = (maps, variant, method) => maps.findIndex((map) => map[0] === variant && map[1] === method);
  const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));

  // One square of a picture: number 0 is the image, number k + 1 is map k.
  const cell = (model, pair, number, description) => {
    const { columns, maps } = MAPS[model];
    const rows = Math.ceil((maps.length + 1) / columns);
    const wide = Math.min(columns, maps.length + 1);
    const element = make("span", undefined, "cell");
    const share = (position, count) => (count > 1 ? (100 * position) / (count - 1) : 0);
    element.style.backgroundImage = `url("maps/${encodeURIComponent(model)}/${pair.file}")`;
    element.style.backgroundSize = `${100 * wide}% ${100 * rows}%`;
    element.style.backgroundPosition = `${share(number % columns, wide)}% ${share(Math.floor(number / columns), rows)}%`;
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", description);
    return element;
  };
  const withBoxes = (element, pair) => {
    for (const [x, y, width, height] of pair.boxes) {
      const box = make("i");
      Object.assign(box.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * width}%`, height: `${100 * height}%` });
      element.append(box);
    }
    return element;
  };

  const sortValue = (pair, metrics, map, against) => {
    const sort = field("sort").value;
    if (sort === "disagreement") return pair.disagreement;
    if (sort === "image") return null;
    const metric = metrics.findIndex(([key]) => key === sort);
    const value = pair.scores[map][metric];
    return against < 0 ? value : value - pair.scores[against][metric];
  };
  const card = (position) => {
    const { pair, value } = listed[position];
    const model = field("model").value;
    const { maps } = data();
    const map = Number(field("map").value);
    const against = Number(field("against").value);
    const item = make("li");
    const button = make("button");
    button.type = "button";
    const strip = make("span", undefined, "strip");
    strip.append(withBoxes(cell(model, pair, 0, `the image, with the boxes of ${pair.class_name}`), pair));
    strip.append(cell(model, pair, map + 1, `map of ${mapName(maps[map])}`));
    if (against >= 0) strip.append(cell(model, pair, against + 1, `map of ${mapName(maps[against])}`));
    button.append(strip, make("span", `${pair.class_name}, ${pair.image_id}`, "label"));
    if (value !== null) {
      const name = field("sort").selectedOptions[0].textContent;
      const text = field("sort").value === "disagreement" ? value.toFixed(3) : `${percent(value)}${against < 0 ? "" : " (difference)"}`;
      button.append(make("small", `${name}: ${text}`));
    }
    button.addEventListener("click", () => show(position));
    item.append(button);
    return item;
  };
  const grow = () => {
    const end = Math.min(shown + PAGE, listed.length);
    for (; shown < end; shown++) gallery.append(card(shown));
    more.hidden = shown >= listed.length;
    const { maps } = data();
    const against = Number(field("against").value);
    const beside = against < 0 ? "" : `, ${mapName(maps[against])}`;
    document.getElementById("count").textContent =
      `${shown} of ${listed.length} pairs. Each shows: the image with its boxes, ${mapName(maps[Number(field("map").value)])}${beside}.`;
  };
  const update = () => {
    const { pairs, metrics } = data();
    const map = Number(field("map").value);
    const against = Number(field("against").value);
    const wanted = field("class").value;
    const sort = metrics.find(([key]) => key === field("sort").value);
    // The worst first: the lowest values of a metric that should be high, and the largest disagreement.
    const direction = (sort && sort[2] ? 1 : -1) * (field("order").value === "worst" ? 1 : -1);
    listed = pairs
      .filter((pair) => wanted === "" || String(pair.target) === wanted)
      .map((pair) => ({ pair, value: sortValue(pair, metrics, map, against) }));
    // A pair without a value comes last in either order.
    listed.sort((a, b) => (a.value === null) - (b.value === null) || (a.value === null ? 0 : direction * (a.value - b.value)));
    gallery.replaceChildren();
    shown = 0;
    grow();
  };
  const setModel = () => {
    const { maps, metrics, pairs } = data();
    const named = maps.map((map, number) => [number, mapName(map)]);
    const classes = new Map(pairs.map((pair) => [pair.target, pair.class_name]));
    options(field("map"), named, place(maps, "guided", "gradient"));
    options(field("against"), [[-1, "no other map"], ...named], Math.max(-1, place(maps, "pretrained", "gradcam")));
    options(field("class"), [["", "all classes"], ...[...classes].sort((a, b) => a[0] - b[0])], "");
    options(field("sort"), [...metrics.map(([key, label]) => [key, label]), ["disagreement", "disagreement of the methods"], ["image", "order of the data"]], "ebpg");
    update();
  };

  const show = (position) => {
    open = position;
    const { pair } = listed[position];
    const model = field("model").value;
    const { maps, metrics } = data();
    document.getElementById("pair-title").textContent = `${pair.class_name}, ${pair.image_id}`;
    document.getElementById("previous").disabled = position === 0;
    document.getElementById("next").disabled = position === listed.length - 1;
    const figure = (element, text) => {
      const whole = make("figure");
      whole.append(element, make("figcaption", text));
      return whole;
    };
    const pictures = [figure(withBoxes(cell(model, pair, 0, "the image with its boxes"), pair), `image and boxes of ${pair.class_name}`)];
    const map = Number(field("map").value);
    const over = cell(model, pair, 0, `the image where the map of ${mapName(maps[map])} is large`);
    const mask = cell(model, pair, map + 1, "");
    mask.className = "cell over";
    mask.setAttribute("aria-hidden", "true");
    over.append(mask);
    pictures.push(figure(over, `what ${mapName(maps[map])} shows`));
    maps.forEach((each, number) => pictures.push(figure(cell(model, pair, number + 1, `map of ${mapName(each)}`), mapName(each))));
    document.getElementById("pair-maps").replaceChildren(...pictures);

    const head = make("tr");
    for (const text of ["map", ...metrics.map(([, label]) => label), "probability, whole image", "probability, kept part"]) {
      const heading = make("th", text);
      heading.scope = "col";
      head.append(heading);
    }
    const body = make("tbody");
    maps.forEach((each, number) => {
      const row = make("tr");
      const name = make("th", mapName(each));
      name.scope = "row";
      row.append(name, ...pair.scores[number].map((value) => make("td", percent(value), "number")));
      body.append(row);
    });
    const thead = make("thead");
    thead.append(head);
    const caption = make("caption", "In percent. The kept part is what Average Drop and Average Increase keep of the image.");
    document.getElementById("pair-scores").replaceChildren(caption, thead, body);
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const position = open + by;
    if (position >= 0 && position < listed.length) show(position);
  };

  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  more.addEventListener("click", grow);
  form.addEventListener("change", (event) => (event.target === field("model") ? setModel() : update()));
  form.addEventListener("submit", (event) => event.preventDefault());
  options(field("model"), models.map((model) => [model, model]), models[0]);
  form.hidden = false;
  setModel();
})();
