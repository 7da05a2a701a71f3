// The photograph, the mask over it, and the tools that draw the mask.
//
// The mask is what a list of operations paints, so that undo is exact. It has the photograph's
// size up to MAX_MASK_PX and is smaller above; the service scales it.

const MAX_MASK_PX = 4_000_000;
const MAX_ZOOM = 16;

export function createEditor(viewport, { onChange }) {
  const layer = viewport.querySelector("#layer");
  const photo = viewport.querySelector("#photo");
  const mask = viewport.querySelector("#mask");
  const cursor = viewport.querySelector("#cursor");
  const paint = mask.getContext("2d", { willReadFrequently: true });
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--hole").trim();
  const state = { tool: "brush", size: 32, done: [], undone: [], current: null, at: null };
  const view = { x: 0, y: 0, zoom: 1 };
  const fingers = new Map();
  let pinch = null, panning = null, space = false, ratio = 1;

  function load(image) {
    photo.width = image.width;
    photo.height = image.height;
    photo.getContext("2d").drawImage(image, 0, 0);
    ratio = Math.min(1, Math.sqrt(MAX_MASK_PX / (image.width * image.height)));
    mask.width = Math.max(1, Math.round(image.width * ratio));
    mask.height = Math.max(1, Math.round(image.height * ratio));
    mask.style.width = `${image.width}px`;
    mask.style.height = `${image.height}px`;
    state.done = [];
    state.undone = [];
    state.at = { x: image.width / 2, y: image.height / 2 };
    repaint();
    fit();
  }

  function repaint() {
    paint.setTransform(1, 0, 0, 1, 0, 0);
    paint.clearRect(0, 0, mask.width, mask.height);
    for (const operation of state.done) apply(operation);
    if (state.current) apply(state.current);
    onChange();
  }

  function apply(operation) {
    const across = mask.width / photo.width, down = mask.height / photo.height;
    paint.setTransform(across, 0, 0, down, 0, 0);
    paint.globalCompositeOperation = operation.tool === "eraser" ? "destination-out" : "source-over";
    paint.fillStyle = paint.strokeStyle = colour;
    if (operation.tool === "box") {
      const { x, y, width, height } = operation;
      paint.fillRect(x, y, width, height);
    } else if (operation.tool === "image") {
      paint.setTransform(1, 0, 0, 1, 0, 0);
      paint.drawImage(operation.image, 0, 0, mask.width, mask.height);
    } else {
      const [first, ...rest] = operation.points;
      paint.lineWidth = operation.size;
      paint.lineCap = paint.lineJoin = "round";
      paint.beginPath();
      paint.moveTo(first.x, first.y);
      if (rest.length === 0) paint.lineTo(first.x + 0.01, first.y);
      for (const point of rest) paint.lineTo(point.x, point.y);
      paint.stroke();
    }
  }

  function commit(operation) {
    state.done.push(operation);
    state.undone = [];
    state.current = null;
    repaint();
  }

  function place() {
    layer.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    showCursor();
  }

  function fit() {
    // No higher than the photograph needs at this width; the style sheet has the limit.
    viewport.style.height = "";
    const limit = viewport.getBoundingClientRect();
    viewport.style.height = `${Math.min(limit.height, Math.ceil((limit.width * photo.height) / photo.width))}px`;
    const box = viewport.getBoundingClientRect();
    view.zoom = Math.min(box.width / photo.width, box.height / photo.height, 4);
    view.x = (box.width - photo.width * view.zoom) / 2;
    view.y = (box.height - photo.height * view.zoom) / 2;
    place();
  }

  function zoomBy(factor, at) {
    const box = viewport.getBoundingClientRect();
    const centre = at ?? { x: box.width / 2, y: box.height / 2 };
    const least = Math.min(box.width / photo.width, box.height / photo.height, 1) / 2;
    const zoom = Math.min(MAX_ZOOM, Math.max(least, view.zoom * factor));
    view.x = centre.x - ((centre.x - view.x) * zoom) / view.zoom;
    view.y = centre.y - ((centre.y - view.y) * zoom) / view.zoom;
    view.zoom = zoom;
    place();
  }

  function seen(event) {
    const box = viewport.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  function onPhoto(event) {
    const point = seen(event);
    return { x: (point.x - view.x) / view.zoom, y: (point.y - view.y) / view.zoom };
  }

  function boxBetween(from, to) {
    const clamp = (value, limit) => Math.round(Math.min(Math.max(value, 0), limit));
    const left = clamp(Math.min(from.x, to.x), photo.width), top = clamp(Math.min(from.y, to.y), photo.height);
    const right = clamp(Math.max(from.x, to.x), photo.width), bottom = clamp(Math.max(from.y, to.y), photo.height);
    return { tool: "box", x: left, y: top, width: right - left, height: bottom - top };
  }

  function showCursor() {
    cursor.hidden = state.at === null || state.tool === "box" || photo.width === 0;
    if (cursor.hidden) return;
    cursor.style.left = `${state.at.x * view.zoom + view.x}px`;
    cursor.style.top = `${state.at.y * view.zoom + view.y}px`;
    cursor.style.width = cursor.style.height = `${Math.max(4, state.size * view.zoom)}px`;
  }

  viewport.addEventListener("pointerdown", (event) => {
    if (photo.width === 0) return;
    viewport.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, seen(event));
    if (fingers.size === 2) {
      state.current = null;
      repaint();
      pinch = spread();
    } else if (event.button === 1 || space) {
      panning = seen(event);
    } else if (event.button === 0) {
      const from = onPhoto(event);
      state.current = state.tool === "box"
        ? { ...boxBetween(from, from), from }
        : { tool: state.tool, size: state.size, points: [from] };
      repaint();
    }
    event.preventDefault();
    viewport.focus({ preventScroll: true });
  });

  viewport.addEventListener("pointermove", (event) => {
    if (photo.width === 0) return;
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, seen(event));
    state.at = onPhoto(event);
    showCursor();
    if (pinch && fingers.size === 2) {
      const now = spread();
      view.x += now.x - pinch.x;
      view.y += now.y - pinch.y;
      zoomBy(now.distance / pinch.distance, now);
      pinch = now;
    } else if (panning) {
      const now = seen(event);
      view.x += now.x - panning.x;
      view.y += now.y - panning.y;
      panning = now;
      place();
    } else if (state.current?.points) {
      const moves = event.getCoalescedEvents?.() ?? [];
      state.current.points.push(...(moves.length ? moves : [event]).map(onPhoto));
      apply(state.current);
    } else if (state.current) {
      state.current = { ...boxBetween(state.current.from, onPhoto(event)), from: state.current.from };
      repaint();
    }
  });

  function spread() {
    const [one, two] = [...fingers.values()];
    return {
      x: (one.x + two.x) / 2, y: (one.y + two.y) / 2,
      distance: Math.max(1, Math.hypot(one.x - two.x, one.y - two.y)),
    };
  }

  function release(event) {
    fingers.delete(event.pointerId);
    if (fingers.size < 2) pinch = null;
    panning = null;
    const { current } = state;
    if (current === null) return;
    state.current = null;
    if (event.type === "pointercancel" || (current.tool === "box" && !(current.width && current.height))) repaint();
    else commit(current);
  }
  viewport.addEventListener("pointerup", release);
  viewport.addEventListener("pointercancel", release);
  viewport.addEventListener("pointerleave", () => { cursor.hidden = true; });

  viewport.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 300), seen(event));
  }, { passive: false });

  viewport.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = Math.max(1, state.size / 2);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves && state.at) {
      const [across, down] = moves[event.key];
      state.at = {
        x: Math.min(photo.width, Math.max(0, state.at.x + across * step)),
        y: Math.min(photo.height, Math.max(0, state.at.y + down * step)),
      };
      showCursor();
    } else if (event.key === "Enter" && state.at) {
      if (state.tool === "box") {
        const half = state.size / 2;
        commit(boxBetween({ x: state.at.x - half, y: state.at.y - half }, { x: state.at.x + half, y: state.at.y + half }));
      } else commit({ tool: state.tool, size: state.size, points: [{ ...state.at }] });
    } else if (event.key === " ") space = true;
    else return;
    event.preventDefault();
  });
  viewport.addEventListener("keyup", (event) => { if (event.key === " ") space = false; });
  viewport.addEventListener("blur", () => { space = false; });

  function hidden() {
    // Every pixel of the mask that was touched, soft edges too.
    const data = paint.getImageData(0, 0, mask.width, mask.height).data;
    let count = 0;
    for (let at = 3; at < data.length; at += 4) if (data[at] > 0) count += 1;
    return { data, count };
  }

  return {
    load,
    fit,
    zoomBy,
    get tool() { return state.tool; },
    set tool(name) { state.tool = name; showCursor(); },
    get size() { return state.size; },
    set size(value) { state.size = value; showCursor(); },
    get photo() { return photo; },
    get canUndo() { return state.done.length > 0; },
    get canRedo() { return state.undone.length > 0; },
    undo() { if (state.done.length) { state.undone.push(state.done.pop()); repaint(); } },
    redo() { if (state.undone.length) { state.done.push(state.undone.pop()); repaint(); } },
    clear() { state.done = []; state.undone = []; repaint(); },
    addBox(x, y, width, height) { commit(boxBetween({ x, y }, { x: x + width, y: y + height })); },
    // An image white on black becomes part of the mask.
    addHole(image) {
      const canvas = document.createElement("canvas");
      canvas.width = mask.width;
      canvas.height = mask.height;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
      for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at] > 127 ? 255 : 0;
      context.putImageData(pixels, 0, 0);
      context.globalCompositeOperation = "source-in";
      context.fillStyle = colour;
      context.fillRect(0, 0, canvas.width, canvas.height);
      commit({ tool: "image", image: canvas });
    },
    isEmpty() { return hidden().count === 0; },
    // The box of the hole with its surroundings, in px of the photograph.
    surroundings() {
      const { data } = hidden();
      let left = mask.width, right = 0, top = mask.height, bottom = 0;
      for (let at = 3, place = 0; at < data.length; at += 4, place += 1) {
        if (data[at] === 0) continue;
        const column = place % mask.width, row = (place - column) / mask.width;
        left = Math.min(left, column);
        right = Math.max(right, column + 1);
        top = Math.min(top, row);
        bottom = Math.max(bottom, row + 1);
      }
      const margin = Math.max(24 * ratio, Math.max(right - left, bottom - top) * 0.6);
      const x = Math.max(0, left - margin), y = Math.max(0, top - margin);
      const width = Math.min(mask.width, right + margin) - x, height = Math.min(mask.height, bottom + margin) - y;
      return [x, y, width, height].map((value) => Math.max(0, Math.round(value / ratio)));
    },
    // The mask as a PNG, white on black.
    async png() {
      const { data } = hidden();
      const canvas = document.createElement("canvas");
      canvas.width = mask.width;
      canvas.height = mask.height;
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(canvas.width, canvas.height);
      for (let at = 0; at < data.length; at += 4) {
        const value = data[at + 3] > 0 ? 255 : 0;
        pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = value;
        pixels.data[at + 3] = 255;
      }
      context.putImageData(pixels, 0, 0);
      return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    },
  };
}
