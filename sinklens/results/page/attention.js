// One view: a head is chosen, and every side shows its pattern. Patterns are drawn when first shown.
sinklens.attention ??= async (id, view) => {
  await sinklens.circuitsvis;
  const frame = document.getElementById(id);
  const size = view.tokens.length;
  const square = (rows) => rows.map((row) => row.concat(Array(size - row.length).fill(0)));
  const draw = (place, rows) => CircuitsVis.render(place.id, CircuitsVis.AttentionPattern, {
    tokens: view.tokens, attention: square(rows), maskUpperTri: view.causal,
    positiveColor: "#0b5394", maxValue: view.most,
  });
  const show = (head) => {
    for (const [name, patterns] of Object.entries(view.sides)) {
      const side = frame.querySelector(`[data-side="${name}"]`);
      const chosen = `${id}-${name}-${head}`;
      for (const pattern of side.children) pattern.hidden = pattern.id !== chosen;
      if (document.getElementById(chosen)) continue;
      const place = document.createElement("div");
      place.id = chosen;
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `Attention pattern of ${view.heads[head]}, ${name}`);
      side.append(place);
      draw(place, patterns[head]);
    }
  };
  frame.addEventListener("change", (event) => show(event.target.value));
  show(frame.querySelector("input:checked").value);
};
