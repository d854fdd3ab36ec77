"use strict";
(() => {
  const dialog = document.getElementById("images");
  const title = document.getElementById("images-title");
  const gallery = dialog.querySelector(".gallery");
  const captions = JSON.parse(document.getElementById("captions").textContent);
  const columns = Number(dialog.dataset.columns);

  function thumbnail(place) {
    const [image, confidence] = captions[place];
    const item = document.createElement("li");
    const picture = document.createElement("span");
    picture.className = "thumb";
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `image ${image}`);
    picture.style.setProperty("--x", place % columns);
    picture.style.setProperty("--y", Math.floor(place / columns));
    const text = document.createElement("span");
    text.textContent = `${confidence}\u00a0%`;
    const number = document.createElement("span");
    number.className = "muted";
    number.textContent = `no. ${image}`;
    item.append(picture, text, number);
    return item;
  }

  function open({ first, kept, count, true: is, guess }) {
    const what = is === guess ? `${is}, right` : `${is} taken for ${guess}`;
    title.textContent = `${what}: ${count} image${count === "1" ? "" : "s"}`;
    if (Number(kept) < Number(count)) title.textContent += `, the ${kept} surest`;
    const places = Array.from({ length: Number(kept) }, (_, place) => Number(first) + place);
    gallery.replaceChildren(...places.map(thumbnail));
    dialog.showModal(); // Escape closes it, and the focus goes back to the button
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-first]");
    if (button) open(button.dataset);
    else if (event.target === dialog) dialog.close(); // beside its content
  });

  // Arrow keys go from cell to cell of the matrix.
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  document.querySelector(".matrix").addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const table = event.currentTarget;
    let cell = event.target.closest("td");
    do {
      const row = table.rows[cell.parentElement.rowIndex + step[0]];
      cell = row && row.cells[cell.cellIndex + step[1]];
    } while (cell && cell.tagName === "TD" && !cell.firstElementChild);
    if (cell && cell.firstElementChild && cell.firstElementChild.tagName === "BUTTON") {
      cell.firstElementChild.focus();
    }
  });
})();
