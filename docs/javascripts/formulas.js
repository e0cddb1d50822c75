// Formulas are drawn by KaTeX. What is wider than the page scrolls by itself, and can then be
// reached with the Tab key.
(() => {
  const draw = (element) => {
    const text = element.textContent.trim();
    katex.render(text.slice(2, -2), element, {
      displayMode: text.startsWith("\\["),
      throwOnError: false,
      strict: "ignore",
    });
  };
  const reach = () => {
    const wide = "pre > code, .md-typeset__scrollwrap, div.arithmatex";
    for (const element of document.querySelectorAll(wide)) {
      if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
      else if (element.tabIndex === 0) element.removeAttribute("tabindex");
    }
  };
  const run = () => {
    document.querySelectorAll(".arithmatex:not(:has(.katex))").forEach(draw);
    setTimeout(reach, 100); // after the theme has wrapped its tables
    document.fonts.ready.then(() => setTimeout(reach, 50)); // and formulas have their width
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", run);
  else run();
  addEventListener("resize", reach);
})();
