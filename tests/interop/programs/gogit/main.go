// A Git client of a few verbs on go-git, for the interop matrix.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	git "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
)

const unsupported = 3

func specs(words []string) []config.RefSpec {
	out := []config.RefSpec{}
	for _, word := range words {
		out = append(out, config.RefSpec(word))
	}
	return out
}

func run(verb string, words []string) error {
	switch verb {
	case "clone", "shallow":
		options := &git.CloneOptions{URL: words[0], Tags: git.AllTags}
		if verb == "shallow" {
			depth, err := strconv.Atoi(words[2])
			if err != nil {
				return err
			}
			options.Depth = depth
		}
		_, err := git.PlainClone(words[1], false, options)
		return err
	case "fetch", "push", "atomic":
		repository, err := git.PlainOpen(words[0])
		if err != nil {
			return err
		}
		if verb == "fetch" {
			err = repository.Fetch(&git.FetchOptions{RemoteName: "origin", Force: true})
			if err == git.NoErrAlreadyUpToDate {
				return nil
			}
			return err
		}
		return repository.Push(&git.PushOptions{
			RemoteName: "origin", RefSpecs: specs(words[1:]), Atomic: verb == "atomic"})
	case "list":
		remote := git.NewRemote(nil, &config.RemoteConfig{Name: "origin", URLs: words[:1]})
		refs, err := remote.List(&git.ListOptions{})
		if err != nil {
			return err
		}
		for _, ref := range refs {
			if ref.Type() == plumbing.HashReference && !strings.HasSuffix(ref.Name().String(), "^{}") {
				fmt.Printf("%s %s\n", ref.Hash(), ref.Name())
			}
		}
		return nil
	}
	fmt.Fprintf(os.Stderr, "go-git has no %s\n", verb)
	os.Exit(unsupported)
	return nil
}

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
