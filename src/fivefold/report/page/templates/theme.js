// The choice holds while the page is open; where the browser lets a page remember, longer.
{
  const choice = document.getElementById("theme");
  const show = () => { document.documentElement.dataset.theme = choice.value; };
  try { choice.value = localStorage.getItem("fivefold-theme") || ""; } catch { /* a file: page may not */ }
  choice.addEventListener("change", () => {
    show();
    try { localStorage.setItem("fivefold-theme", choice.value); } catch { /* as above */ }
  });
  show();
}
