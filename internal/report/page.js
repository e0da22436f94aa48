document.getElementById("open").onclick = () => {
  for (const d of document.querySelectorAll("details")) d.open = true;
};
const reveal = () => {
  const d = document.getElementById(location.hash.slice(1));
  if (d) d.open = true;
};
addEventListener("hashchange", reveal);
reveal();
