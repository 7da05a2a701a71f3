// Shows openapi.json as a page, without scripts of other sites.

const answer = await fetch("openapi.json");
const found = await answer.json();
document.getElementById("about").textContent = found.info.description;
for (const pre of document.querySelectorAll("pre")) {
  pre.textContent = pre.textContent.replaceAll("http://HOST:PORT", location.origin);
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

for (const [path, methods] of Object.entries(found.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const card = element("section", "", "card");
    card.append(element("h2", `${method.toUpperCase()} ${path}`));
    card.append(element("p", about.description ?? about.summary ?? ""));
    const content = about.requestBody?.content["multipart/form-data"]?.schema;
    const list = document.createElement("ul");
    for (const [name, field] of Object.entries(content?.properties ?? {})) {
      const needed = content.required.includes(name) ? "needed" : "optional";
      const values = field.enum ? `: ${field.enum.join(", ")}` : field.description ? `: ${field.description}` : "";
      list.append(element("li", `${name} (${field.format === "binary" ? "file" : "text"}, ${needed})${values}`));
    }
    for (const field of about.parameters ?? []) {
      const values = field.schema?.enum ? `: ${field.schema.enum.join(", ")}` : "";
      list.append(element("li", `${field.name} (in the ${field.in}, ${field.required ? "needed" : "optional"})${values}`));
    }
    if (list.children.length) card.append(list);
    document.getElementById("paths").append(card);
  }
}
