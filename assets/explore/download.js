(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "dynamo-sweep.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
