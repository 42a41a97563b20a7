"""One function of the kernel from its source to machine code, with the mode as a variable and as constants.

Prints the Python source, the checked tree and the LLVM text that the compiler makes of it, which are the same for
every build, and the instructions of each build with their bytes and the symbols that the linker puts in.
"""

from fivefold.report.page.code_picture import builds, code_lines


def main() -> None:
    """Compile the function three times and print each stage."""
    made = builds()
    first = next(iter(made.values()))
    print(first.source, "-- checked", "", *first.tree, "", sep="\n")
    print("-- text for LLVM", "", first.llvm, "", sep="\n")
    for title, one in made.items():
        print(f"-- {title}", "", *code_lines(one), "", sep="\n")


if __name__ == "__main__":
    main()
