// Tables are sorted by their heads and narrowed by words and attributes.
for (const table of document.querySelectorAll("table.atlas")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const compare = (one, other) => {
    const [a, b] = [Number(one), Number(other)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b;
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.ariaSort === "descending" ? false
      : head.ariaSort === "ascending" || column > 0;
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([one], [other]) => (one === "") - (other === "")
      || (falling ? compare(other, one) : compare(one, other)));
    for (const each of heads) each.ariaSort = "none";
    head.ariaSort = falling ? "descending" : "ascending";
    body.append(...rows.map(([, row]) => row));
  }));

  const form = document.querySelector("form.filters");
  if (!form) continue;
  const words = form.querySelector("input"), choices = [...form.querySelectorAll("select")];
  const narrow = () => {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const chosen = choices.every(({ value, dataset }) => !value
        || row.querySelector(`[data-name="${dataset.name}"]`).textContent === value);
      row.hidden = !chosen || !asked.every((word) => text.includes(word));
      count += !row.hidden;
    }
    form.querySelector("output").textContent = `${count} of ${body.rows.length} shown`;
  };
  form.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  narrow();
}

// Browsers open JSON instead of saving it where a page is a file; what the page holds is saved.
for (const link of document.querySelectorAll("a[data-packed]")) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const content = await sinklens.unpacked(link.dataset.packed).blob();
    const saved = document.createElement("a");
    saved.href = URL.createObjectURL(content);
    saved.download = link.pathname.split("/").pop();
    saved.click();
    setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
  });
}
