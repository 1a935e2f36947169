// Figures are drawn one after another, in the colours of the scheme; on paper they are light and fit.
{
  const PAPER = 680, WIDE = 640; // pixels
  const schemes = matchMedia("(prefers-color-scheme: dark)");
  const frames = () => document.querySelectorAll(".figure");
  let onPaper = false;

  const coloured = (layout) => {
    const page = getComputedStyle(document.body);
    const colour = onPaper ? "#000" : page.color;
    const grid = onPaper ? "#ececec" : page.getPropertyValue("--grid");
    const axis = { linecolor: colour, tickcolor: colour, gridcolor: grid };
    const own = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, color: colour } };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      own[name] = { ...layout[name], ...axis };
    }
    return { ...layout, ...own };
  };
  const draw = async (frame) => {
    const sizes = JSON.parse(frame.querySelector("script").textContent);
    const figure = frame.clientWidth < WIDE && !onPaper ? sizes.narrow : sizes.wide;
    const place = frame.querySelector("div");
    place.style.zoom = onPaper ? Math.min(1, PAPER / figure.layout.width) : "";
    await Plotly.react(place, figure.data, coloured(figure.layout), { displayModeBar: false });
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
    onPaper = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    for (const folded of opened.splice(0)) folded.open = false;
    onPaper = false;
    drawAll();
  });
  Promise.all(sinklens.drawn).then(() => { document.documentElement.dataset.ready = ""; });
}
