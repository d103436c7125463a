const pick = document.getElementById("pick"), warned = document.getElementById("warned");
function filter() {
  for (const card of document.querySelectorAll(".gallery .card")) {
    const labels = card.dataset.labels.split(" ");
    card.hidden = (pick.value && !labels.includes(pick.value)) || (warned.checked && !card.dataset.warned);
  }
}
pick.addEventListener("change", filter);
warned.addEventListener("change", filter);
