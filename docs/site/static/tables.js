// A click on the head of a column sorts its table by it, numbers as numbers ("+6.2 [+5.8 to +6.7]" by its first), and back.
document.addEventListener('DOMContentLoaded', () => {
  const number = text => parseFloat(text.replace(/,/g, '').replace('−', '-'));
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) && isNaN(y)) return a.localeCompare(b);
    return (isNaN(x) ? Infinity : x) - (isNaN(y) ? Infinity : y);
  };
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const text = row => (row.cells[column] || {textContent: ''}).textContent.trim();
    const rows = [...body.rows].sort((a, b) => compare(text(a), text(b)) * (down ? -1 : 1));
    body.append(...rows);
  };
  document.querySelectorAll('article table').forEach(table => {
    const head = table.tHead && table.tHead.rows[table.tHead.rows.length - 1];
    if (!head || !table.tBodies.length) return;
    [...head.cells].forEach((cell, column) => {
      cell.tabIndex = 0;
      cell.classList.add('sortable');
      cell.title = 'sort by this column';
      const go = () => {
        const down = cell.getAttribute('aria-sort') === 'ascending';
        [...head.cells].forEach(other => other.removeAttribute('aria-sort'));
        cell.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        sort(table, column, down);
      };
      cell.addEventListener('click', go);
      cell.addEventListener('keydown', event => { if (event.key === 'Enter') go(); });
    });
  });
});
