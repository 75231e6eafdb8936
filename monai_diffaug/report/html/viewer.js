"use strict";
/* Three planes of each volume, cut from its slices; one set of sliders for a pair. Fetches nothing. */
(() => {
  const numbers = text => text.split(",").map(Number);
  const PLANES = [  // name, the axis that the slider moves along, width's and height's axis, height turned around
    ["Axial", 2, 0, 1, false],
    ["Coronal", 1, 0, 2, true],
    ["Sagittal", 0, 1, 2, true],
  ];

  function voxels(figure, size) {
    const image = figure.querySelector(".slices"), columns = Number(figure.dataset.columns), [nx, ny, nz] = size;
    const sheet = document.createElement("canvas");
    sheet.width = image.naturalWidth;
    sheet.height = image.naturalHeight;
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, sheet.width, sheet.height).data, out = new Uint8Array(nx * ny * nz);
    for (let z = 0; z < nz; z++)
      for (let y = 0; y < ny; y++)
        for (let x = 0; x < nx; x++)
          out[x + nx * (y + ny * z)] = rgba[4 * (x + (z % columns) * nx + sheet.width * (y + Math.floor(z / columns) * ny))];
    return out;
  }

  function draw(canvas, volume, size, plane, at) {
    const [, along, across, down, turned] = PLANES[plane], step = [1, size[0], size[0] * size[1]];
    const w = size[across], h = size[down], picture = new ImageData(w, h);
    for (let r = 0; r < h; r++)
      for (let c = 0; c < w; c++) {
        const v = volume[at * step[along] + c * step[across] + (turned ? h - 1 - r : r) * step[down]];
        picture.data.set([v, v, v, 255], 4 * (r * w + c));
      }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function open(figure) {
    const size = numbers(figure.dataset.size), spacing = numbers(figure.dataset.spacing);
    const volume = voxels(figure, size), row = document.createElement("div");
    row.className = "planes";
    const canvases = PLANES.map(([name, , across, down]) => {
      const canvas = document.createElement("canvas");
      canvas.width = size[across];
      canvas.height = size[down];
      const wide = size[across] * spacing[across], tall = size[down] * spacing[down];
      canvas.style.flex = `${wide} 1 0`;
      canvas.style.aspectRatio = `${wide} / ${tall}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${name} plane, ${figure.querySelector(".still").alt}`);
      row.append(canvas);
      return canvas;
    });
    figure.querySelector(".still").hidden = true;
    figure.append(row);
    return { size, show: (plane, share) => draw(canvases[plane], volume, size, plane, place(share, size[PLANES[plane][1]])) };
  }

  const place = (share, n) => Math.min(n - 1, Math.floor(share * n));

  async function pair(block) {
    const figures = [...block.querySelectorAll(".volume")];
    await Promise.all(figures.map(f => f.querySelector(".slices").decode()));
    const volumes = figures.map(open), made = volumes[volumes.length - 1], at = numbers(figures[figures.length - 1].dataset.at);
    PLANES.forEach(([name, along], plane) => {
      const n = made.size[along], label = document.createElement("label"), text = document.createElement("span");
      const slider = Object.assign(document.createElement("input"), { type: "range", min: 1, max: n, step: 1, value: at[along] + 1 });
      const move = () => {
        const said = `${name} slice ${slider.value} of ${n}`;
        text.textContent = said;
        slider.setAttribute("aria-valuetext", said);
        volumes.forEach(v => v.show(plane, (slider.value - 0.5) / n));
      };
      slider.addEventListener("input", move);
      label.append(text, slider);
      block.querySelector(".sliders").append(label);
      move();
    });
    block.dataset.ready = "yes";
  }

  document.querySelectorAll(".pair").forEach(block => pair(block).catch(() => { block.dataset.ready = "no"; }));
  const outlines = document.getElementById("outlines");
  if (outlines) outlines.addEventListener("change", () => document.body.classList.toggle("plain", !outlines.checked));
})();
