// Figures are drawn one after another, in the colours of the scheme; on paper they are light and fit.
{
  const PAPER = 680, LEAST = 640; // pixels
  const schemes = matchMedia("(prefers-color-scheme: dark)");
  const frames = () => document.querySelectorAll(".figure");

  const coloured = (layout) => {
    const colour = getComputedStyle(document.body).color;
    const axis = { linecolor: colour, tickcolor: colour, zerolinecolor: colour };
    const own = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, color: colour } };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      own[name] = { ...layout[name], ...axis };
    }
    return { ...layout, ...own };
  };
  const draw = async (frame) => {
    const figure = JSON.parse(frame.querySelector("script").textContent);
    const layout = coloured(figure.layout);
    layout.width ??= Math.max(frame.clientWidth, LEAST);
    await Plotly.react(frame.querySelector("div"), figure.data, layout, { displayModeBar: false });
  };
  const drawAll = async () => {
    if (!frames().length) return;
    await sinklens.plotly;
    for (const frame of frames()) await draw(frame);
  };
  sinklens.drawn.push(drawAll());
  schemes.addEventListener("change", drawAll);
  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(drawAll, 200); });

  const opened = [];
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details:not([open])")) {
      folded.open = true;
      opened.push(folded);
    }
    for (const frame of frames()) {
      const plot = frame.querySelector("div");
      plot.style.zoom = Math.min(1, PAPER / plot.firstElementChild.clientWidth);
    }
    drawAll();
  });
  addEventListener("afterprint", () => {
    for (const folded of opened.splice(0)) folded.open = false;
    for (const frame of frames()) frame.querySelector("div").style.zoom = "";
    drawAll();
  });
  Promise.all(sinklens.drawn).then(() => { document.documentElement.dataset.ready = ""; });
}
